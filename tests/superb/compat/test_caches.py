"""What S3PRL's other tasks cache: no pickle is loaded, and nothing that belongs to another corpus is used."""

import importlib
import json
import pathlib
import pickle
import sys
import types

import pytest
import soundfile
import torch

import s3prl_ofa.superb  # noqa: F401  (applies the shims)
from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.compat import caches

PACKAGE = "s3prl.downstream"
VAD = {"min_sec": 32_000}  # samples, whatever its name


@pytest.fixture
def verification(monkeypatch):
    """S3PRL's sv_voxceleb1.dataset with a stub for sox; ``measured`` lists the files that were measured."""
    monkeypatch.setitem(sys.modules, "sox", types.SimpleNamespace(Transformer=None))
    dataset = importlib.import_module(f"{PACKAGE}.sv_voxceleb1.dataset")
    dataset.measured = []

    def trim(path, effects):
        dataset.measured.append(pathlib.Path(path).name)
        wave, rate = soundfile.read(path, dtype="float32")
        return torch.from_numpy(wave)[None], rate

    monkeypatch.setattr(dataset, "apply_effects_file", trim)
    return dataset


def test_trimmed_lengths_are_those_of_this_corpus(verification, tmp_path, make_wave):
    """sv_voxceleb1 caches lengths in the experiment, as lines of JSON; another corpus and changed files are measured
    again."""
    for corpus, seconds in (("one", (1.0, 3.0)), ("two", (3.0, 1.0))):
        for number, length in enumerate(seconds):
            path = tmp_path / corpus / f"speaker{number}" / "video" / f"{number}.wav"
            path.parent.mkdir(parents=True)
            soundfile.write(path, make_wave(length), 16_000)
    inside = pathlib.Path(verification.__file__).parent
    before = sorted(inside.rglob("*"))
    caches.secure_caches("sv_voxceleb1", tmp_path)

    def training_files(corpus) -> list[str]:
        verification.measured.clear()
        data = verification.SpeakerVerifi_train(VAD, ["Voxceleb1"], [tmp_path / corpus], None, n_jobs=1)
        assert data.speaker_num == 2 and data.all_speakers == ["speaker0", "speaker1"]
        assert all(data[index][2] == int(pathlib.Path(path).stem) for index, path in enumerate(data.dataset))
        return [pathlib.Path(path).name for path in data.dataset]

    assert training_files("one") == ["1.wav"] and len(verification.measured) >= 2
    assert training_files("two") == ["0.wav"]
    assert training_files("one") == ["1.wav"] and verification.measured == ["1.wav"]  # which the test itself reads
    soundfile.write(tmp_path / "one/speaker0/video/0.wav", make_wave(4.0), 16_000)
    assert training_files("one") == ["0.wav", "1.wav"] and verification.measured.count("1.wav") == 1
    (cache,) = tmp_path.glob("*.jsonl")
    assert len({json.loads(line)[0] for line in cache.read_text().splitlines()}) == 4
    for damaged in ("", "[]", '{"a": 1}', cache.read_text()[:-9]):
        cache.write_text(damaged)
        assert training_files("one") == ["0.wav", "1.wav"]
    assert sorted(inside.rglob("*")) == before


def test_lengths_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    """A kill while they are written leaves the cache as it was."""
    cache, paths, write = tmp_path / "lengths.json", [str(tmp_path / name) for name in "ab"], pathlib.Path.write_text
    for path in paths:
        pathlib.Path(path).touch()
    dataset = types.SimpleNamespace(
        EFFECTS=[],
        apply_effects_file=lambda path, effects: (torch.zeros(1, 7), 16_000),
    )
    assert caches.trimmed_lengths(dataset, paths[:1], cache, 1) == {paths[0]: 7}
    before = cache.read_text()

    def killed(path, text, *args):
        write(path, text[:9], *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(pathlib.Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        caches.trimmed_lengths(dataset, paths, cache, 1)
    assert cache.read_text() == before and not list(tmp_path.glob(".*"))


def test_other_tasks_read_no_pickle(tmp_path, monkeypatch):
    """A task that would unpickle its cache names the file instead."""
    marker, cache = tmp_path / "marker", tmp_path / "downstream/voxceleb2_amsoftmax_segment_eval/cache_wav_paths"
    cache.mkdir(parents=True)
    (cache / "cache_key.p").write_bytes(pickle.dumps(Hostile(marker)))
    monkeypatch.chdir(tmp_path)
    caches.secure_caches("voxceleb2_amsoftmax_segment_eval", tmp_path)
    dataset = importlib.import_module(f"{PACKAGE}.voxceleb2_amsoftmax_segment_eval.dataset")
    with pytest.raises(UsageError, match="cache_key.p: .*pickle.*remove it"):
        dataset.SpeakerVerifi_train(VAD, {"key": str(tmp_path)}, None)
    assert not marker.exists()
    pickle.load((cache / "cache_key.p").open("rb"))
    assert marker.exists()


def test_every_run_has_its_caches_secured(verification, tmp_path, monkeypatch, capsys):
    """run_downstream does so before S3PRL builds the task, with the experiment's folder for the lengths."""

    def stop(dataset, cache):
        raise UsageError(f"{dataset.__name__} keeps {cache}")

    monkeypatch.setattr(caches, "keep_lengths", stop)
    (tmp_path / "config.yaml").write_text("{runner: {total_steps: 2}, downstream_expert: {}}")
    task = ["-m", "train", "-d", "sv_voxceleb1", "-u", "fbank", "-c", str(tmp_path / "config.yaml")]
    assert cli.main(["run_downstream", *task, "-p", str(tmp_path / "exp")]) == 2
    kept = f"{PACKAGE}.sv_voxceleb1.dataset keeps {tmp_path}/exp/trimmed_lengths.jsonl"
    assert capsys.readouterr().err.endswith(f"error: {kept}\n")


class Hostile:
    """Makes the file that it names when it is unpickled."""

    def __init__(self, marker: pathlib.Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)
