"""The cache of a frozen upstream's features: the same features, no second run, never more than its limit."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import types

import pytest
import torch
from torch import nn

import s3prl_ofa
from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.model.ofa import OFAWav2Vec2
from s3prl_ofa.superb.expert import UpstreamExpert
from s3prl_ofa.superb.feature_cache import FeatureCache, default_folder, wanted_layers
from s3prl_ofa.superb.meter import Meter, measured_path
from s3prl_ofa.superb.rate_options import RateOptions

CKPT = str(pathlib.Path(__file__).parent / "golden" / "ref_tiny.pt")
ALL = (0, 1, 2)  # the layers of the tiny model
CLOSE = {"atol": 1e-5, "rtol": 1e-5}
RATES = [{"lambd": 0.0}, {"lambd": 0.5}, {"lambd": 1.3}, {"frame_period_ms": 21.0}, {"frame_period_ms": 40.0}]


@pytest.fixture(scope="module")
def wavs(make_wave):
    """Four utterances, of one frame and more."""
    return [torch.from_numpy(make_wave(seconds, seed)) for seed, seconds in enumerate((0.7, 0.028, 1.23, 0.4))]


@pytest.fixture
def alike(make_wave):
    """A function (count, first seed) -> utterances of one length, whose entries are equally large at lambd 0."""
    return lambda count, first=0: [torch.from_numpy(make_wave(0.3, 50 + first + number)) for number in range(count)]


@pytest.fixture
def ran(monkeypatch):
    """The length in samples of every utterance that the model has run on."""
    found, extract = [], OFAWav2Vec2.extract

    def counted(model, wavs, *args, **kwargs):
        found.extend(map(len, wavs))
        return extract(model, wavs, *args, **kwargs)

    monkeypatch.setattr(OFAWav2Vec2, "extract", counted)
    return found


@pytest.fixture
def opened(tmp_path, golden_model):
    """A function (limit in bytes, layers, model, folder, rate) that opens a cache; all are closed at the end."""
    caches = []

    def open_cache(limit=10**8, layers=ALL, model=golden_model, folder=tmp_path / "features", **rate):
        caches.append(FeatureCache(folder, limit / 10**9, model, rate or {"lambd": 0.0}, layers))
        return caches[-1]

    yield open_cache
    for cache in caches:
        cache.close()


def ask(cache, wavs, model, **rate):
    return cache.extract(wavs, lambda missing: model.extract(missing, **rate))


def on_disk(folder) -> int:
    """Bytes of all entries, half-written ones among them."""
    total = 0
    for path in pathlib.Path(folder).rglob("*.safetensors"):
        with contextlib.suppress(FileNotFoundError):  # renamed or removed meanwhile
            total += path.stat().st_size
    return total


def counted(folder) -> int:
    return int(pathlib.Path(folder, "bytes").read_text())


def assert_same(found, expected, layers=ALL):
    """Each field that the upstream uses is the same to 1e-5, padding and types too; other layers are NaN."""
    assert len(found.hidden_states) == len(expected.hidden_states)
    for layer, (state, plain) in enumerate(zip(found.hidden_states, expected.hidden_states, strict=True)):
        assert state.shape == plain.shape
        if layer in layers:
            torch.testing.assert_close(state, plain, **CLOSE)
        else:
            assert state.isnan().all()
    for name in ("lengths", "times", "lambd", "frame_period_ms", "input_lengths"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), **CLOSE)
    assert found.frame_index.dtype == expected.frame_index.dtype
    for row, length in enumerate(expected.input_lengths.tolist()):
        assert torch.equal(found.frame_index[row, :length], expected.frame_index[row, :length])


@pytest.mark.parametrize("rate", RATES, ids=str)
@pytest.mark.parametrize("known", [(), (0, 1, 2, 3), (1,), (3, 0), (2, 1)], ids=str)
def test_a_batch_is_what_the_model_gives(rate, known, wavs, golden_model, opened, ran):
    """Whatever part of a batch is there already and whatever it was batched with, all of it comes as from the model,
    which runs on the rest alone."""
    cache = opened(**rate)
    if known:
        ask(cache, [wavs[index] for index in known], golden_model, **rate)
    expected = golden_model.extract(wavs, **rate)
    ran.clear()
    assert_same(ask(cache, wavs, golden_model, **rate), expected)
    assert ran == [len(wav) for index, wav in enumerate(wavs) if index not in known]
    ran.clear()
    backwards = golden_model.extract(wavs[::-1], **rate)
    ran.clear()
    assert_same(ask(cache, wavs[::-1], golden_model, **rate), backwards)
    assert not ran


UPSTREAMS = [
    {"frames": "native"},
    {"frames": "native", "lambd": 0.5, "repeat": 2},
    {"frames": "upsampled", "lambd": 0.5},
    {"frames": "upsampled", "frame_period_ms": 35.0},
    {"frames": "native", "pool": 2},
    {"frames": "upsampled", "pool": 2},
]


@pytest.mark.parametrize("options", UPSTREAMS, ids=str)
@torch.no_grad()
def test_through_the_upstream(options, wavs, opened, ran):
    """The upstream gives S3PRL the same with and without a cache, in every form, and counts the same frames and cost;
    a second time the model does not run."""
    plain, cached = UpstreamExpert(CKPT, **options), UpstreamExpert(CKPT, **options)
    cached.cache = opened(model=cached.model, **cached.options.extract_rate)
    for batch in ([wavs[2]], wavs, wavs[:2], wavs[::-1]):
        expected, found = plain(batch), cached(batch)
        assert found.keys() == expected.keys()
        assert torch.equal(found["hidden_states_len"], expected["hidden_states_len"])
        for state, other in zip(found["hidden_states"], expected["hidden_states"], strict=True):
            torch.testing.assert_close(state, other, **CLOSE)
    assert cached.measured == plain.measured
    ran.clear()
    cached(wavs)
    assert not ran


@pytest.mark.parametrize("first", [{}, {"lambd": 0.0}, {"lambd": 0}, {"pool": 3}], ids=str)
@torch.no_grad()
def test_pooling_shares_what_lambd_0_has_kept(first, wavs, opened, ran):
    """Pooling comes after the cache, so what was kept at lambd 0, said or not, or for another pool serves it."""
    for number, options in enumerate((first, {"pool": 2})):
        expert = UpstreamExpert(CKPT, frames="native", **options)
        with opened(model=expert.model, **expert.options.extract_rate) as expert.cache:
            ran.clear()
            expert(wavs)
        assert len(ran) == (0 if number else len(wavs))


def test_another_epoch_in_another_process(wavs, golden_model, opened, ran):
    """What one has kept the next one that opens the folder finds, one utterance after another or all at once."""
    with opened() as cache:
        expected = ask(cache, wavs, golden_model)
    ran.clear()
    with opened() as cache:
        assert_same(ask(cache, wavs, golden_model), expected)
        for row, wav in enumerate(wavs):
            frames = int(expected.lengths[row])
            found = ask(cache, [wav], golden_model).hidden_states[-1]
            torch.testing.assert_close(found, expected.hidden_states[-1][row : row + 1, :frames], **CLOSE)
    assert not ran


def test_each_model_and_rate_has_its_own_place(wavs, golden_model, opened, ran):
    """Features of another rate, of other layers, of other weights or in another dtype are never taken for these."""
    changed = s3prl_ofa.load(CKPT)
    with torch.no_grad():
        changed.encoder.layers[1].fc1.bias[0] += 1e-3
    half = s3prl_ofa.load(CKPT, dtype=torch.bfloat16)
    others = [
        (golden_model, ALL, {"lambd": 0.5}),
        (golden_model, ALL, {"lambd": 0.0}),
        (golden_model, ALL, {"lambd": 0.50001}),
        (golden_model, ALL, {"frame_period_ms": 40.0}),
        (golden_model, (2,), {"lambd": 0.5}),
        (changed, ALL, {"lambd": 0.5}),
        (half, ALL, {"lambd": 0.5}),
    ]
    for known in (False, True):
        for model, layers, rate in others:
            expected = model.extract(wavs[:2], **rate)
            ran.clear()
            cache = opened(model=model, layers=layers, **rate)
            assert_same(ask(cache, wavs[:2], model, **rate), expected, layers if known else ALL)
            assert bool(ran) != known
    assert len(list(cache.space.folder.glob("*/key.json"))) == len(others)


def test_audio_is_known_by_its_samples(wavs, golden_model, opened, ran):
    """The same samples are found wherever they come from; one that differs in its last bit or is cut is not."""
    cache, wav = opened(), wavs[0]
    ask(cache, [wav], golden_model)
    ran.clear()
    strided = torch.stack([wav, wav], 1)[:, 0]
    for same in (wav.clone(), wav.double(), strided, wav.clone().requires_grad_()):
        with torch.no_grad():
            ask(cache, [same], golden_model)
    assert not ran
    touched = wav.clone()
    touched[7] = torch.nextafter(touched[7], torch.tensor(1.0))
    for other in (touched, wav[:-1], torch.cat([wav, torch.zeros(1)]), -wav):
        assert_same(ask(cache, [other], golden_model), golden_model.extract([other]))
    assert len(ran) == 8


def test_precision_of_the_moment(wavs, golden_model, opened):
    """What was computed under autocast, as S3PRL's fp16 does in training, is not given where full precision is asked
    for: the result is the same as without a cache."""
    cache = opened(lambd=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ask(cache, wavs, golden_model, lambd=0.5)
    assert_same(ask(cache, wavs, golden_model, lambd=0.5), golden_model.extract(wavs, lambd=0.5))


def test_never_above_the_limit(alike, golden_model, opened, tmp_path, ran):
    """Entries never take more than the limit, the count is right, what did not fit is computed each time, right all the
    same, and what is there is used."""
    folder, waves = tmp_path / "features", alike(8)
    with opened() as cache:
        ask(cache, waves[:1], golden_model)
    size = on_disk(folder)
    with opened(limit=3 * size + size // 2) as cache:
        for wave in waves:
            assert_same(ask(cache, [wave], golden_model), golden_model.extract([wave]))
            assert counted(folder) == on_disk(folder) <= 3 * size
        ran.clear()
        assert_same(ask(cache, waves, golden_model), golden_model.extract(waves))
        assert len(ran) == 5 + len(waves)  # the second is the plain one
    assert on_disk(folder) == 3 * size
    with opened(limit=size - 1, folder=tmp_path / "small") as cache:
        assert_same(ask(cache, waves, golden_model), golden_model.extract(waves))
    assert on_disk(tmp_path / "small") == 0


def test_the_oldest_place_makes_room(alike, golden_model, opened, tmp_path):
    """When it is full the place goes that was opened longest ago, were it filled last, and no more of them than need
    be; places in use stay."""
    folder, waves, places = tmp_path / "features", alike(4), {}
    rates = {"a": 0.001, "b": 0.002, "c": 0.003, "d": 0.004}
    for name in "abca":
        with opened(lambd=rates[name]) as cache:
            ask(cache, waves, golden_model, lambd=rates[name])
        places[name] = cache.place
        time.sleep(0.02)  # more than the grain of a file's time
    limit = on_disk(folder)
    with opened(limit=limit, lambd=rates["d"]) as cache:
        ask(cache, waves[:1], golden_model, lambd=rates["d"])
        assert [name for name in "abc" if not places[name].exists()] == ["b"]
        assert counted(folder) == on_disk(folder) <= limit
    with opened(lambd=rates["c"]), opened(limit=on_disk(folder), lambd=rates["d"]) as cache:
        ask(cache, waves[1:], golden_model, lambd=rates["d"])
        assert [name for name in "ac" if not places[name].exists()] == ["a"]  # c is older than a, and in use
        assert counted(folder) == on_disk(folder) <= limit


def test_a_place_in_use_stays(alike, golden_model, opened, tmp_path, ran):
    """Where all places are in use nothing makes room: their entries stay, and the newcomer goes on without keeping."""
    folder, waves = tmp_path / "features", alike(3)
    holder = opened(lambd=0.001)
    ask(holder, waves, golden_model, lambd=0.001)
    full = on_disk(folder)
    with opened(limit=full, lambd=0.5) as cache:
        assert_same(ask(cache, waves, golden_model, lambd=0.5), golden_model.extract(waves, lambd=0.5))
    assert on_disk(folder) == full
    ran.clear()
    ask(holder, waves, golden_model, lambd=0.001)
    assert not ran
    holder.close()
    with opened(limit=full, lambd=0.5) as cache:
        ask(cache, waves, golden_model, lambd=0.5)
    assert not holder.place.exists() and 0 < on_disk(folder) <= full


BROKEN = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "too long": lambda content: content + b"x",
    "zeros": lambda content: bytes(len(content)),
    "text": lambda content: b"no entry " * 50,
    "endless header": lambda content: b"\xff" * 100,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_entry_is_computed_anew(kind, wavs, golden_model, opened, caplog, ran):
    """An entry that cannot be read is named in a warning, computed, and kept again; the others of its batch are used,
    and the next who opens the folder counts right."""
    cache, expected = opened(lambd=0.5), golden_model.extract(wavs, lambd=0.5)
    ask(cache, wavs, golden_model, lambd=0.5)
    path = cache.path(wavs[2])
    good = path.read_bytes()
    path.write_bytes(BROKEN[kind](good))
    ran.clear()
    assert_same(ask(cache, wavs, golden_model, lambd=0.5), expected)
    assert ran == [len(wavs[2])]
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and str(path) in warned[0] and "computed anew" in warned[0]
    assert_same(ask(cache, wavs, golden_model, lambd=0.5), expected)
    assert len(ran) == 1 and len(path.read_bytes()) == len(good)
    cache.close()
    with opened(lambd=0.5) as cache:
        assert counted(cache.space.folder) == on_disk(cache.space.folder)


@pytest.mark.parametrize("left", ["PLACE/ab/.0123.x.safetensors", "PLACE/.key.x.json", ".bytes.x"])
def test_what_a_kill_left_half_written_goes(left, wavs, golden_model, opened, tmp_path):
    """Half-written files of a killed process are removed by the next that opens the folder alone, and not while
    another one, whose they may be, has it open; the count is right again."""
    with opened() as cache:
        ask(cache, wavs, golden_model)
    half = tmp_path / "features" / left.replace("PLACE", cache.place.name)
    half.parent.mkdir(exist_ok=True)
    half.write_bytes(b"half of it")
    (tmp_path / "features" / "bytes").write_text("123456\n")  # taken for what was not written
    with opened(lambd=0.5):
        assert not half.exists()
        assert counted(tmp_path / "features") == on_disk(tmp_path / "features")
        half.write_bytes(b"half of it")
        with opened():
            assert half.exists()


def test_a_removal_that_was_cut_off(alike, golden_model, opened, tmp_path, monkeypatch):
    """A place of which a killed process has removed a part still counts, so that the limit holds, and goes at last."""
    folder, waves = tmp_path / "features", alike(4)
    with opened() as cache:
        ask(cache, waves, golden_model)
    size = on_disk(folder) // 4

    def cut_off(place, **options):
        (place / "key.json").unlink()  # folders come in any order
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, opened(limit=4 * size, lambd=0.001) as other:
        patch.setattr(shutil, "rmtree", cut_off)
        with pytest.raises(KeyboardInterrupt):
            ask(other, waves, golden_model, lambd=0.001)
    with opened(limit=4 * size, lambd=0.001) as other:
        assert_same(ask(other, waves, golden_model, lambd=0.001), golden_model.extract(waves, lambd=0.001))
        assert on_disk(folder) <= 4 * size


CHILD = """
import pathlib, sys, time
import torch
import s3prl_ofa
from s3prl_ofa.superb.feature_cache import FeatureCache

torch.set_num_threads(1)
folder, limit, lambd, ckpt, doing = sys.argv[1:]
model, lambd = s3prl_ofa.load(ckpt), float(lambd)
wavs = list(0.1 * torch.randn(24, 4800, generator=torch.Generator().manual_seed(1)))

def hang(path, content):
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
    print("writing", flush=True)
    time.sleep(600)

with FeatureCache(folder, int(limit) / 10**9, model, {"lambd": lambd}, (0, 1, 2)) as cache:
    print("open", flush=True)
    sys.stdin.readline()
    for number, wav in enumerate(wavs * 2):
        if doing == "hang" and number == 3:
            pathlib.Path.write_bytes = hang
        out = cache.extract([wav], lambda missing: model.extract(missing, lambd=lambd))
        assert torch.allclose(out.hidden_states[-1], model.extract([wav], lambd=lambd).hidden_states[-1], atol=1e-5)
"""


def start(folder, limit, lambd, doing="fill") -> subprocess.Popen:
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(folder), str(limit), str(lambd), CKPT, doing]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=pathlib.Path(__file__).parents[1], **pipes)


def child_waves() -> list[torch.Tensor]:
    return list(0.1 * torch.randn(24, 4800, generator=torch.Generator().manual_seed(1)))


def test_killed_while_writing(golden_model, opened, tmp_path, ran):
    """What a process has open another one leaves alone; killed while it writes, it leaves a cache that holds what was
    whole, nothing half written, and the right count."""
    folder, waves = tmp_path / "features", child_waves()
    child = start(folder, 10**8, 0.0, "hang")
    try:
        child.stdin.write("go\n")
        child.stdin.flush()
        assert [child.stdout.readline(), child.stdout.readline()] == ["open\n", "writing\n"]
        with opened(limit=on_disk(folder), lambd=0.5) as cache:  # full, and nothing may go
            ask(cache, waves, golden_model, lambd=0.5)
            assert len(list(folder.rglob("*.safetensors"))) == 4
    finally:
        child.send_signal(signal.SIGKILL)
        child.communicate()
    ran.clear()
    with opened() as cache:
        assert counted(folder) == on_disk(folder) and len(list(folder.rglob("*.safetensors"))) == 3
        ask(cache, waves, golden_model)
        assert len(ran) == len(waves) - 3
        assert counted(folder) == on_disk(folder)


def test_several_processes_at_once(golden_model, opened, tmp_path, ran):
    """Two processes that fill the same place, and one of another rate, get right features, never take more than the
    limit together, and leave a right count."""
    folder, waves = tmp_path / "features", child_waves()
    with opened(folder=tmp_path / "one") as cache:
        ask(cache, waves[:1], golden_model)
    limit = 30 * on_disk(tmp_path / "one")
    children = [start(folder, limit, lambd) for lambd in (0.0, 0.0, 0.001)]
    try:
        assert [child.stdout.readline() for child in children] == ["open\n"] * 3
        for child in children:
            child.stdin.write("go\n")
            child.stdin.flush()
        while any(child.poll() is None for child in children):
            assert on_disk(folder) <= limit
            time.sleep(0.01)
        assert [child.returncode for child in children] == [0, 0, 0]
    finally:
        for child in children:
            child.kill()
            child.communicate()
    assert on_disk(folder) <= counted(folder) <= limit
    ran.clear()
    with opened(limit=limit) as cache:
        assert counted(folder) == on_disk(folder)
        assert_same(ask(cache, waves, golden_model), golden_model.extract(waves))


@pytest.mark.parametrize("below", ["file", "file/features", "file/a/b"])
def test_a_folder_that_cannot_be_written(below, golden_model, tmp_path):
    """A folder that cannot be made is bad use, said in one sentence that names it."""
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UsageError, match=r"cannot be written \(.+\)$") as error:
        FeatureCache(tmp_path / below, 1, golden_model, {"lambd": 0.0}, ALL)
    assert str(tmp_path / below) in str(error.value) and "\n" not in str(error.value)


def full_disk(monkeypatch, *methods):
    def fail(path, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    for method in methods:
        monkeypatch.setattr(pathlib.Path, method, fail)


@pytest.mark.parametrize("methods", [("write_bytes",), ("write_text",), ("write_bytes", "write_text")], ids=str)
def test_a_full_disk_stops_nothing(methods, wavs, golden_model, opened, monkeypatch, caplog, ran):
    """Where the disk is full, for entries, for their count or both, one warning says so, the features still come, what
    is there is used, and nothing half written stays."""
    cache = opened()
    ask(cache, wavs[:1], golden_model)
    expected = golden_model.extract(wavs)
    with monkeypatch.context() as patch:
        full_disk(patch, *methods)
        ran.clear()
        for _ in range(2):
            assert_same(ask(cache, wavs, golden_model), expected)
    assert len(ran) == 2 * (len(wavs) - 1)
    warned = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warned) == 1 and "No space left on device" in warned[0]
    assert not list(cache.space.folder.rglob(".*.safetensors"))
    cache.close()
    with opened() as cache:
        assert counted(cache.space.folder) == on_disk(cache.space.folder)


def test_a_folder_that_somebody_removes(wavs, golden_model, opened, ran):
    """Caches get emptied by hand: a training that is using one goes on."""
    cache = opened()
    ask(cache, wavs[:2], golden_model)
    shutil.rmtree(cache.space.folder)
    for _ in range(2):
        assert_same(ask(cache, wavs, golden_model), golden_model.extract(wavs))


def test_a_place_that_cannot_be_removed(alike, golden_model, opened, tmp_path, monkeypatch):
    """Where the place that should make room cannot be removed, the newcomer goes on without keeping."""
    waves = alike(2)
    with opened() as cache:
        ask(cache, waves, golden_model)

    def refuse(place, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with opened(limit=on_disk(tmp_path / "features"), lambd=0.5) as cache:
        assert_same(ask(cache, waves, golden_model, lambd=0.5), golden_model.extract(waves, lambd=0.5))


CHOICES = [
    ("hidden_states", None, ALL),
    ("hidden_states", 1, (1,)),
    ("hidden_states", 0, (0,)),
    ("hidden_states", -1, (2,)),
    ("hidden_states", -3, (0,)),
    ("last_hidden_state", None, (2,)),
    ("last_hidden_state", 0, (2,)),
    ("hidden_state_2", None, (2,)),
    ("hidden_state_0", 2, (0,)),
    ("hidden_state_7", None, ALL),
    ("hidden_state_7", 1, (1,)),
    ("hidden_state_02", None, ALL),
    ("hidden_state_", None, ALL),
    ("something", None, ALL),
    ("something", 1, (1,)),
]


@pytest.mark.parametrize(("selection", "layer", "layers"), CHOICES)
@torch.no_grad()
def test_what_s3prl_selects_is_kept(selection, layer, layers, wavs, opened, ran):
    """Of what S3PRL's -s and -l choose no more is kept than it reads, the rest being NaN, and its featurizer gives the
    same with a cache; for a choice that it replaces by another, too."""
    from s3prl_ofa.superb.featurizer import LengthAwareFeaturizer

    found = wanted_layers(selection, layer, 2)
    expert = UpstreamExpert(CKPT, lambd=0.5, frames="native")
    featurizer = LengthAwareFeaturizer(expert, selection, "cpu", layer_selection=layer)
    expected = featurizer(wavs, expert(wavs))
    plain = expert.extract(wavs)
    expert.cache = opened(model=expert.model, layers=found, **expert.options.extract_rate)
    expert(wavs[1:3])
    assert_same(expert.extract(wavs), plain, found)
    ran.clear()
    for row, other in zip(featurizer(wavs, expert(wavs)), expected, strict=True):
        torch.testing.assert_close(row, other, **CLOSE)
    assert not ran
    assert set(layers) <= set(found) and (len(found) == len(layers) or found == ALL)


def test_layers_of_a_choice():
    """One layer where one is read, all where all are summed or where S3PRL will refuse."""
    assert {wanted_layers("hidden_states", layer, 12) for layer in (None, 13, -14)} == {tuple(range(13))}
    assert wanted_layers("hidden_states", -13, 12) == (0,) and wanted_layers("hidden_state_12", None, 12) == (12,)


def test_default_folder(monkeypatch, tmp_path):
    """Without --feature-cache it is the cache folder of the user, where XDG says or ~/.cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_folder() == tmp_path / "xdg" / "s3prl_ofa" / "features"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_folder() == tmp_path / "home" / ".cache" / "s3prl_ofa" / "features"


class Features(nn.Module):
    """A featurizer and downstream model for a meter to watch."""

    def forward(self, found):
        return list(found["hidden_states"][-1]) if isinstance(found, dict) else found


@torch.no_grad()
def evaluated(expert, folder, batches) -> dict:
    """What a meter measures of an evaluation of these batches."""
    args = types.SimpleNamespace(device="cpu", mode="evaluate", evaluate_split="test", expdir=str(folder))
    models = {"upstream": expert, "featurizer": Features(), "downstream": Features()}
    runner = types.SimpleNamespace(
        args=args, **{name: types.SimpleNamespace(model=model) for name, model in models.items()}
    )
    meter = Meter(runner, {})
    for batch in batches:
        runner.downstream.model(runner.featurizer.model(runner.upstream.model(batch)))
    meter.write()
    return json.loads(measured_path(folder, "test").read_text())


def test_the_upstream_is_measured_though_all_is_kept(alike, opened, tmp_path, ran):
    """Of an evaluation whose features are all there the first two batches and each tenth are computed, so that there is
    a speed; frames and cost are those of an evaluation without a cache."""
    expert = UpstreamExpert(CKPT, lambd=0.5, frames="native")
    waves = alike(23)
    expert.cache = opened(model=expert.model, **expert.options.extract_rate)
    with torch.no_grad():
        expert(waves)
    expert.measured.__init__()
    ran.clear()
    found = evaluated(expert, tmp_path, [[wave] for wave in waves])
    assert len(ran) == 4
    assert found["upstream_seconds_per_second"] > 0 and found["downstream_seconds_per_second"] > 0
    plain = evaluated(UpstreamExpert(CKPT, lambd=0.5, frames="native"), tmp_path, [[wave] for wave in waves])
    for name in ("utterances", "batches", "audio_seconds", "frames", "frame_period_ms", "macs_per_second", "options"):
        assert found[name] == plain[name], name
    one = evaluated(expert, tmp_path, [waves])
    assert one["upstream_seconds_per_second"] > 0


@pytest.mark.parametrize("kept", [False, True])
def test_the_time_of_the_cache_is_not_the_model_s(kept, alike, opened, tmp_path, monkeypatch):
    """What finding and keeping entries takes does not count as the upstream's time, in a new folder and in a full
    one."""
    expert, waves = UpstreamExpert(CKPT, frames="native"), alike(3)
    expert.cache = opened(model=expert.model, **expert.options.extract_rate)
    if kept:
        with torch.no_grad():
            expert(waves)

    def slowly(method):
        return lambda *args: (time.sleep(0.6), method(*args))[1]

    for name in ("path", "keep"):
        monkeypatch.setattr(FeatureCache, name, slowly(getattr(FeatureCache, name)))
    found = evaluated(expert, tmp_path, [[wave] for wave in waves])
    assert 0 < found["upstream_seconds_per_second"] * 0.3 < 0.6


STEPS = {"total_steps": 6, "eval_step": 3, "save_step": 6, "log_step": 2}
DATARC = "config.downstream_expert.datarc"


@pytest.fixture
def call(corpora, tmp_path, monkeypatch):
    """A function (folder, *options, lr, upstream) that trains SID, three epochs; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = ["--voxceleb1", str(corpora / "VoxCeleb1"), "--prepared", str(corpora / "prepared"), "--mini"]

    def train(folder, *options, lr=1e-2, upstream=("ofa_wav2vec2", "-k", CKPT)):
        changes = [*(f"config.runner.{name}={value}" for name, value in STEPS.items()), f"config.optimizer.lr={lr}"]
        changes.append(f"{DATARC}.train_batch_size=2")
        task = ["-m", "train", "-d", "sid", "-p", str(folder), *data, "-o", ",,".join(changes), "-u", *upstream]
        return cli.main(["run_downstream", *task, *options])

    return train


def evaluate(folder, *options) -> dict:
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", str(folder), *options]) == 0
    return json.loads(pathlib.Path(folder, "measured_test.json").read_text())


def stored(folder) -> dict:
    return torch.load(pathlib.Path(folder, "states-6.ckpt"), map_location="cpu", weights_only=True)


def test_training_is_the_same_with_a_cache(call, tmp_path, ran):
    """Training and evaluation end with the weights and scores of a run without a cache, the weighted sum having been
    trained; each utterance goes through the upstream once, and for another learning rate none does."""
    probe = [16_000]  # S3PRL runs a second of noise to learn the upstream's width
    assert call("plain", "--lambd", "0.5") == 0
    ran.clear()
    cache = ["--cache-gb", "0.1", "--feature-cache", "features"]
    assert call("cached", "--lambd", "0.5", *cache) == 0
    assert len(ran) == len(set(ran)) and len(ran) == 1 + 4 + 2  # noise, training, dev
    plain, cached = stored("plain"), stored("cached")
    for part in ("Downstream", "Featurizer"):
        assert plain[part].keys() == cached[part].keys()
        for name, value in plain[part].items():
            torch.testing.assert_close(cached[part][name], value, **CLOSE)
    assert cached["Featurizer"]["weights"].abs().max() > 1e-3
    expected = evaluate("plain")
    for _ in range(2):
        found = evaluate("cached", *cache)
        assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
        assert found["upstream_seconds_per_second"] > 0
        assert found["frames"] == expected["frames"] and found["macs_per_second"] == expected["macs_per_second"]
    ran.clear()
    assert call("other", "--lambd", "0.5", *cache, lr=1e-3) == 0
    assert ran == probe
    assert not torch.equal(stored("other")["Featurizer"]["weights"], cached["Featurizer"]["weights"])
    assert not (tmp_path / "cache").exists() and counted("features") == on_disk("features")
    assert call("again", "--lambd", "0.5", "--cache-gb", "0.1", "-a") == 0
    assert on_disk(tmp_path / "cache" / "s3prl_ofa" / "features") > 0


MISUSE = [
    (["--feature-cache", "features"], "--feature-cache needs --cache-gb"),
    (["--cache-gb", "1", "-f"], "leave it out with -f"),
    (["--cache-gb", "1", "--lambd", "adaptive"], "leave it out with lambd adaptive"),
    *((["--cache-gb", value], f"a number above 0 is expected, found '{value}'") for value in ("0", "-1", "nan", "x")),
    (["--cache-gb", "inf"], "a number above 0 is expected, found 'inf'"),
]


@pytest.mark.parametrize(("options", "sentence"), MISUSE, ids=str)
def test_misuse(options, sentence, call, capfd, tmp_path):
    """What cannot be cached, and a size that is none, is bad use, said in one sentence before anything is written."""
    assert call("exp", *options) == 2
    shown = capfd.readouterr().err
    assert sentence in shown.strip().splitlines()[-1] and "Traceback" not in shown
    assert not list(tmp_path.iterdir())


def test_misuse_with_another_upstream(call, capfd, tmp_path):
    """S3PRL's own upstreams have no cache, which is said."""
    assert call("exp", "--cache-gb", "1", upstream=("mfcc",)) == 2
    assert "--cache-gb needs the upstream ofa_wav2vec2, found mfcc" in capfd.readouterr().err.strip().splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_in_a_run(call, capfd, tmp_path):
    """--feature-cache below a file ends the run with one sentence, and the same command with another folder trains."""
    (tmp_path / "file").write_text("no folder")
    assert call("exp", "--cache-gb", "1", "--feature-cache", "file/features") == 2
    shown = capfd.readouterr().err
    assert "the feature cache file/features cannot be written" in shown.strip().splitlines()[-1]
    assert "Traceback" not in shown
    assert call("exp", "--cache-gb", "1", "--feature-cache", "features") == 0


def test_every_option_of_the_rate_reaches_the_cache():
    """The key is made of what the upstream hands to the model: no field of the rate is forgotten."""
    rate = RateOptions(lambd=0.5).extract_rate
    assert {"lambd", "frame_period_ms"} == set(rate)
    assert {field.name for field in dataclasses.fields(RateOptions)} - set(rate) == {
        "frames",
        "repeat",
        "pool",
        "rate_weight",
        "lambd_start",
    }
