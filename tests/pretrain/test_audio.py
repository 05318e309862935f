"""Audio that pretraining cannot use is named before training starts if its header shows it, otherwise when it is read,
or is left out, in a resumed run too."""

import logging

import numpy as np
import pytest
import soundfile
from pretraining import (
    SAMPLE_RATE,
    corpus_settings,
    differences,
    make_corpus,
    read_checkpoint,
    run_here,
    speechlike,
    write_config,
)

from s3prl_ofa.io.audio import AudioError
from s3prl_ofa.pretrain import dataset as dataset_module
from s3prl_ofa.pretrain.dataset import GuidedAudioDataset


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "PAUSES", ())
    return make_corpus(tmp_path / "corpus", train=10)


def wave_path(corpus, number: int):
    return corpus / "audio" / f"train/v1.2/utterance{number}.flac"


def damage(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + bytes(200) + content[len(content) // 2 + 200 :])


def open_corpus(corpus, **settings) -> GuidedAudioDataset:
    manifest = str(corpus / "data" / "train.tsv")
    return GuidedAudioDataset(manifest, sample_rate=SAMPLE_RATE, pad=True, max_sample_size=14_000, **settings)


def write_stereo(path):
    soundfile.write(path, np.stack([speechlike(9_000, 0)] * 2, 1), SAMPLE_RATE)


def write_fast(path):
    soundfile.write(path, speechlike(9_000, 0), 48_000)


BAD_HEADERS = {
    "no such file": lambda path: path.unlink(),
    "an empty file": lambda path: path.write_bytes(b""),
    "16000 Hz with 2 channels; expected 16000 Hz mono": write_stereo,
    "48000 Hz with 1 channel; expected 16000 Hz mono": write_fast,
    "300 samples; at least 400": lambda path: soundfile.write(path, speechlike(300, 0), SAMPLE_RATE),
}


@pytest.mark.parametrize("words", BAD_HEADERS)
def test_bad_headers_are_named_at_the_start(corpus, words, caplog):
    """With bad_audio=stop nothing is trained, with skip the utterance is left out of its batch, with one warning
    before training starts."""
    path = wave_path(corpus, 2)
    BAD_HEADERS[words](path)
    with pytest.raises(AudioError, match=f"1 of 10 files in train.tsv cannot be used: {path}: {words}.*bad_audio=skip"):
        open_corpus(corpus)
    with caplog.at_level(logging.WARNING):
        dataset = open_corpus(corpus, bad_audio="skip")
        batches = [dataset.collater([dataset[index] for index in (1, 2, 3)]) for _ in range(2)]
    assert [str(path) in record.getMessage() for record in caplog.records].count(True) == 1
    assert [batch["id"].tolist() for batch in batches] == [[1, 3]] * 2
    assert all(len(batch["net_input"]["source"]) == 2 for batch in batches)


def test_many_bad_files_are_one_message(corpus):
    """The first are named and all are counted; if none is left, training stops even with skip."""
    for number in range(10):
        wave_path(corpus, number).unlink()
    with pytest.raises(AudioError, match="10 of 10 .* cannot be used: .*no such file and 7 more") as caught:
        open_corpus(corpus, bad_audio="skip")
    assert str(caught.value).count("no such file") == 3


def test_damaged_audio(corpus, caplog):
    """A FLAC that is damaged in the middle is named when it is read, or left out; a batch without any other
    utterance gets the first readable one."""
    path = wave_path(corpus, 4)
    damage(path)
    with pytest.raises(AudioError, match=f"^{path}: damaged.*task.bad_audio=skip leaves it out$"):
        open_corpus(corpus)[4]
    damage(wave_path(corpus, 0))
    with caplog.at_level(logging.WARNING):
        dataset = open_corpus(corpus, bad_audio="skip")
        assert dataset.collater([dataset[3], dataset[4]])["id"].tolist() == [3]
        assert dataset.collater([dataset[4]])["id"].tolist() == [1]
        assert dataset.collater([dataset[4], dataset[0]])["id"].tolist() == [1]
    assert [str(path) in record.getMessage() for record in caplog.records].count(True) == 1


def test_a_disk_that_fails_for_a_moment(corpus, monkeypatch):
    """A file that can be read at the second attempt is used."""
    monkeypatch.setattr(dataset_module, "PAUSES", (0.0,))
    load_speech, failures = dataset_module.load_speech, [AudioError("System error")]

    def load(path):
        if failures:
            raise failures.pop()
        return load_speech(path)

    monkeypatch.setattr(dataset_module, "load_speech", load)
    assert len(open_corpus(corpus)[4]["source"]) > 6_000 and not failures


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_skipped_audio_and_a_stop(corpus, tmp_path, workers, capfd):
    """With damaged files, even all of a batch, a run that was stopped within an epoch and resumed equals an
    uninterrupted one bit for bit; without skip the command names the file."""
    lines = (corpus / "data" / "train.tsv").read_text().splitlines()[1:]
    longest = sorted(range(10), key=lambda number: -int(lines[number].split("\t")[1]))
    for number in (*longest[:2], longest[5]):  # batches are of two neighbors in length
        damage(wave_path(corpus, number))
    config = write_config(
        tmp_path / "tiny.yaml",
        dataset={"disable_validation": True, "num_workers": workers},
        checkpoint={"save_interval_updates": 3},
        task={"max_sample_size": 30_000},
    )
    arguments = ["--config", config]
    assert run_here([*arguments, *corpus_settings(corpus, tmp_path / "stop"), "optimization.max_update=7"]) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("s3prl-ofa pretrain: error: ") and "damaged" in error and "utterance" in error
    for out, updates in (("through", (7,)), ("stopped", (3, 7))):
        for update in updates:
            settings = [*corpus_settings(corpus, tmp_path / out), "task.bad_audio=skip"]
            assert run_here([*arguments, *settings, f"optimization.max_update={update}"]) == 0
    one, other = (read_checkpoint(tmp_path / out / "checkpoints/checkpoint_last.pt") for out in ("through", "stopped"))
    for key in ("model", "last_optimizer_state", "task_state"):
        assert differences(one[key], other[key], key) == []
    assert one["optimizer_history"][-1]["num_updates"] == 7
