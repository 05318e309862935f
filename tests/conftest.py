"""Shared fixtures."""

import errno
import http.server
import json
import logging
import os
import pathlib
import signal
import sys
import threading

import numpy as np
import pytest
import soundfile
import torch
from paths import GOLDEN

SAMPLE_RATE = 16_000  # Hz


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Before fixtures of any scope: random weights are the same in every run, so that a failure comes again."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def no_handlers_of_other_tests():
    """hydra, in a pretraining, leaves root handlers on its test's stdout, which is closed when the next test logs.

    It also closes all handlers, and absl's then closes the stderr that it found when it was imported, here pytest's.
    """
    if "absl.logging" in sys.modules:
        sys.modules["absl.logging"].get_absl_handler().python_handler.stream = sys.__stderr__
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, logging.StreamHandler) and getattr(handler.stream, "closed", False):
            root.removeHandler(handler)


@pytest.fixture(autouse=True)
def no_quiet_of_other_tests():
    """``--quiet`` also holds for processes that are started later: S3PRL's own script would train without end."""
    yield
    logging.getLogger("s3prl_ofa").setLevel(logging.NOTSET)
    for name in ("TQDM_DISABLE", "LOGLEVEL"):
        os.environ.pop(name, None)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The tests run in several processes; more threads in each would only get in the way."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """A shell's background job, as these tests may be, ignores SIGINT, and so would the commands that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def cache_of_the_tests(tmp_path_factory):
    """What is remembered about the tests' audio stays out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def golden_checkpoint() -> pathlib.Path:
    """The tiny checkpoint of the reference: conv width 32, 2 layers of 32."""
    return GOLDEN / "ref_tiny.pt"


@pytest.fixture
def served():
    """The address of a server of the golden files, and a list of the paths that it has been asked for."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(GOLDEN))

        def do_GET(self):
            requests.append(self.path)
            super().do_GET()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", requests
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def golden_model(golden_checkpoint):
    import s3prl_ofa

    return s3prl_ofa.load(golden_checkpoint)


@pytest.fixture(scope="session")
def make_wave():
    """A function (seconds, seed=0, rate=16000) -> float32 wave (samples,): noise through a slow envelope."""

    def make(seconds: float, seed: int = 0, rate: int = SAMPLE_RATE) -> np.ndarray:
        samples = round(seconds * rate)
        noise = np.random.default_rng(seed).standard_normal(samples)
        envelope = 0.55 + 0.45 * np.sin(2 * np.pi * 3 * np.arange(samples) / rate)
        return (0.1 * envelope * noise).astype(np.float32)

    return make


@pytest.fixture
def audio_folder(tmp_path, make_wave) -> pathlib.Path:
    """Four good files of several formats, rates and channel counts; two differ in their ending alone."""
    folder = tmp_path / "audio"
    (folder / "deep" / "er").mkdir(parents=True)
    soundfile.write(folder / "a.flac", make_wave(1.0, 1), SAMPLE_RATE)
    soundfile.write(folder / "a.wav", make_wave(0.7, 2, 8_000), 8_000)
    stereo = np.stack([make_wave(0.5, 3, 44_100), make_wave(0.5, 4, 44_100)], 1)
    soundfile.write(folder / "deep" / "b.mp3", stereo, 44_100)
    soundfile.write(folder / "deep" / "er" / "c.opus", make_wave(0.8, 5, 48_000), 48_000, format="OGG", subtype="OPUS")
    (folder / "notes.txt").write_text("no audio")
    return folder


@pytest.fixture(scope="module")
def corpora(tmp_path_factory) -> pathlib.Path:
    """LibriSpeech, VoxCeleb1 and what ``prepare`` makes of them, of a few made-up utterances."""
    from superb_corpora import make_corpora

    root = tmp_path_factory.mktemp("corpora")
    make_corpora(root)
    return root


@pytest.fixture(scope="module")
def reference(golden_checkpoint) -> dict:
    """The content of the reference's file."""
    return torch.load(golden_checkpoint, weights_only=True)


@pytest.fixture
def save(tmp_path):
    """A function (state, zipped=True) -> path that saves a checkpoint, in torch's zip form or its older one."""

    def write(state, zipped=True):
        torch.save(state, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
        return tmp_path / "model.pt"

    return write


@pytest.fixture
def extract(golden_checkpoint, tmp_path):
    """Runs ``s3prl-ofa extract``; the output folder is ``tmp_path / "out"``."""
    from s3prl_ofa import cli

    def run(*arguments, ckpt=golden_checkpoint, out=tmp_path / "out") -> int:
        return cli.main(["extract", *map(str, arguments), "--ckpt", str(ckpt), "--out", str(out)])

    return run


def read_index(out: pathlib.Path) -> dict[str, dict]:
    """What extract says it has written, by name."""
    rows = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    return {row["name"]: row for row in rows}


@pytest.fixture(scope="session")
def mini_librispeech() -> pathlib.Path:
    """Five hours of real speech; its place is in the variable OFA_MINI_LIBRISPEECH."""
    root = os.environ.get("OFA_MINI_LIBRISPEECH")
    if not root or not pathlib.Path(root, "utterances.tsv").is_file():
        pytest.skip("real speech is not at hand: set OFA_MINI_LIBRISPEECH to the folder of mini_librispeech")
    return pathlib.Path(root)


@pytest.fixture(scope="module")
def waves(make_wave):
    """Four utterances, of one frame and more."""
    return [torch.from_numpy(make_wave(seconds, seed)) for seed, seconds in enumerate((0.7, 0.028, 1.23, 0.4))]


@pytest.fixture
def alike(make_wave):
    """A function (count, first seed) -> utterances of one length, whose entries are equally large at lambd 0."""
    return lambda count, first=0: [torch.from_numpy(make_wave(0.3, 50 + first + number)) for number in range(count)]


@pytest.fixture
def ran(monkeypatch):
    """The length in samples of every utterance that the model has run on."""
    from s3prl_ofa.model.ofa import OFAWav2Vec2

    found, extract = [], OFAWav2Vec2.extract

    def counted(model, waves, *args, **kwargs):
        found.extend(map(len, waves))
        return extract(model, waves, *args, **kwargs)

    monkeypatch.setattr(OFAWav2Vec2, "extract", counted)
    return found


@pytest.fixture
def opened(tmp_path, golden_model):
    """A function (limit in bytes, layers, model, folder, options of ``extract``) that opens a cache; all are closed at
    the end."""
    from s3prl_ofa.superb.feature_cache.cache import FeatureCache

    caches = []

    def open_cache(
        limit=10**8, layers=(0, 1, 2), model=golden_model, folder=tmp_path / "features", options=None, **rate
    ):
        caches.append(FeatureCache(folder, limit / 10**9, model, options or rate or {"lambd": 0.0}, layers))
        return caches[-1]

    yield open_cache
    for cache in caches:
        cache.close()


@pytest.fixture
def decoded(monkeypatch) -> list[pathlib.Path]:
    """The audio files that a feature cache has decoded."""
    from s3prl_ofa.superb.feature_cache import audio

    found, load = [], audio.load_speech
    monkeypatch.setattr(audio, "load_speech", lambda path: found.append(pathlib.Path(path)) or load(path))
    return found


@pytest.fixture
def closed_folders(monkeypatch) -> None:
    """Every folder called closed cannot be searched, as without permission, which root always has."""
    scandir = os.scandir

    def guarded(path):
        if os.path.basename(path) == "closed":
            raise PermissionError(errno.EACCES, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
