"""Corpora of SUPERB's tasks beside LibriSpeech and VoxCeleb1: what is read of them, and what is refused."""

import argparse
import importlib
import logging
import pathlib
import shutil

import numpy as np
import pytest
import soundfile
from superb_corpora import INTENTS, KEYWORD_SPEAKERS

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import AudioError
from s3prl_ofa.resources import folder
from s3prl_ofa.superb.compat.missing_packages import import_expert
from s3prl_ofa.superb.compat.shims import read_piece
from s3prl_ofa.superb.tasks.data_roots import DataRoots


@pytest.fixture
def corpus(corpora, tmp_path):
    """A function (name) -> a copy of a corpus that a test may damage."""
    return lambda name: pathlib.Path(shutil.copytree(corpora / name, tmp_path / name))


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING)
    return caplog


def damage(path: pathlib.Path) -> None:
    path.write_bytes(b"no audio")


def test_keywords_are_divided_as_s3prl_does(corpus, warnings):
    """By the hash of the speaker, in a fixed order, without what cannot be read; words that are no keyword are one
    class, and the background noise another."""
    root = corpus("speech_commands") / "speech_commands_v0.01"
    damage(root / "no" / "a_nohash_0.wav")
    expert = import_expert("speech_commands")
    train, dev = expert.split_dataset(root)
    speakers = [sorted({path.name[0] for _, path in clips}) for clips in (train, dev)]
    assert speakers == [list(KEYWORD_SPEAKERS["train"]), list(KEYWORD_SPEAKERS["dev"])]
    assert train == sorted(train) and len(train) == 3 * 5 - 1
    assert "1 of 15 utterances are left out" in warnings.text and "a_nohash_0.wav" in warnings.text
    data = expert.SpeechCommandsDataset(train, speech_commands_root=root)
    names = [name for name, _ in data.data]
    assert [names.count(name) for name in ("yes", "no", "_unknown_", "_silence_")] == [5, 4, 5, 1]
    for name in set(names):  # each class is drawn as often as another
        drawn = [weight for other, weight in zip(names, data.sample_weights, strict=True) if other == name]
        assert np.isclose(sum(drawn), len(names))
    assert len(data[len(data) - 1][0]) == 16_000  # a second of the noise


def test_keywords_that_cannot_be_used_are_refused(corpus):
    root = corpus("speech_commands")
    train, test = root / "speech_commands_v0.01", root / "speech_commands_test_set_v0.01"
    expert = import_expert("speech_commands")
    soundfile.write(train / "_background_noise_" / "short.wav", np.zeros(8_000), 16_000)
    with pytest.raises(UsageError, match=r"less than a second: \S+/short.wav"):
        expert.SpeechCommandsDataset([], speech_commands_root=train)
    (test / "cat").mkdir()
    with pytest.raises(UsageError, match="a folder for each of yes, no, .*_silence_, found cat"):
        expert.SpeechCommandsTestingDataset(speech_commands_test_root=test)
    shutil.rmtree(train / "yes"), shutil.rmtree(train / "no"), shutil.rmtree(train / "bed")
    with pytest.raises(UsageError, match="has too few files KEYWORD/SPEAKER_nohash_NUMBER.wav"):
        expert.split_dataset(train)
    shutil.rmtree(test)
    with pytest.raises(UsageError, match="--speech-commands .*: expected one folder speech_commands_test_set_v0.01"):
        DataRoots({"speech_commands": str(root)}, False).value("speech_commands_test")


def read_intents(root: pathlib.Path) -> argparse.Namespace:
    expert = argparse.Namespace(datarc={"file_path": str(root)})
    import_expert("fluent_commands").DownstreamExpert.get_dataset(expert)
    return expert


def test_intents_are_numbered_as_s3prl_does(corpus, warnings):
    """By their first place in the training table; utterances without audio are left out of it and of the others."""
    root = corpus("fluent_speech_commands_dataset")
    (root / "wavs" / "train0.wav").unlink()
    expert = read_intents(root)
    assert expert.values_per_slot == [2, 2, 2]
    assert [expert.Sy_intent["object"][name] for name in ("music", "heat", 0, 1)] == [0, 1, "music", "heat"]
    assert list(expert.train_df["path"]) == ["wavs/train1.wav", "wavs/train2.wav", "wavs/train3.wav"]
    assert len(expert.valid_df) == len(expert.test_df) == 2
    assert "1 of 4 utterances are left out" in warnings.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            f",path,action,object,location\n0,wavs/test0.wav,{INTENTS[0]}x",
            "of location that the training data lack: nonex",
        ),
        (",path,action\n0,wavs/test0.wav,activate", "expected the columns path, action, object, location, found"),
        (None, "there is no .*test_data.csv"),
    ],
)
def test_intents_that_cannot_be_used_are_refused(corpus, text, message):
    root = corpus("fluent_speech_commands_dataset")
    table = root / "data" / "test_data.csv"
    table.unlink() if text is None else table.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_intents(root)


@pytest.fixture
def slots(corpus):
    """A function (change="", **options) -> S3PRL's labels of the training set, whose first text gets ``change``."""

    def read(change=("", ""), **options):
        root = corpus("SNIPS")
        texts = root / "all.iob.snips.txt"
        texts.write_text(texts.read_text().replace(*change, 1) if change[0] else texts.read_text())
        text = importlib.import_module("s3prl.downstream.ctc.text")
        characters = folder("downstream_configs") / "character.txt"
        tokenizer = text.load_text_encoder("character-slot", str(characters), str(root / "slots.txt"))
        data = importlib.import_module("s3prl.downstream.ctc.data")
        splits = {"train": ["train"], "path": str(root), **options}
        dataset, _ = data.create_dataset("train", tokenizer, "snips", False, 1, **splits)
        return {
            pathlib.Path(path).stem: tokenizer.decode(ids)
            for path, ids in zip(dataset.file_list, dataset.text, strict=True)
        }

    return read


def test_slots_become_labels_around_their_words(slots):
    found = slots()
    assert found["Ivy-train-1"] == "PLAY A B-song HIT E-song" and found["Ivy-train-0"] == "PLAY A HIT"
    assert len(found) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ("HIT", "HIT!"),
            r"1 of 4 utterances have characters or slots without a label: !, in Ivy-train-0 \(.*line 1\)",
        ),
        (("\tO O O O", "\tO O O album"), "without a label: album"),
        (("BOS PLAY", "BOS"), r"line 1: expected NAME BOS WORD .* found 'Ivy-train-0 BOS A HIT"),
    ],
)
def test_texts_of_slots_that_cannot_be_used_are_refused(slots, change, message):
    with pytest.raises(UsageError, match=message):
        slots(change)


def test_speakers_of_a_split_are_chosen_by_their_names(slots):
    assert len(slots(train_speakers=["Ivy"])) == 4


def test_speakers_that_a_split_lacks_leave_nothing(slots):
    with pytest.raises(UsageError, match="none of 0 utterances can be used"):
        slots(train_speakers=["Joanna"])


def test_emotions_are_read_from_the_corpus(corpus, tmp_path, warnings):
    """The session of the fold tests and the others train, with excited as happy, other emotions left out; tables of
    S3PRL are used where they are."""
    root = corpus("IEMOCAP_full_release")
    dataset = import_expert("emotion").IEMOCAPDataset
    test = dataset(str(root), "Session1/test_meta_data.json", False)
    assert [test[index][1:] for index in range(len(test))] == [
        (label, f"Ses_impro01_{number:03}") for number, label in enumerate((0, 1, 1, 2, 3))
    ]
    train = dataset(str(root), "Session1/train_meta_data.json", True)
    assert len(train) == 25 and len(train.wavs) == 25 and train.class_num == 4 and train.idx2emotion[1] == "hap"
    table = tmp_path / "Session1" / "test_meta_data.json"
    table.parent.mkdir()
    table.write_text(
        f'{{"labels": {{"neu": 0}}, "meta_data": [{{"path": "{train.meta_data[3]["path"]}", "label": "neu"}}]}}'
    )
    assert len(dataset(str(root), str(table), False)) == 1
    with pytest.raises(UsageError, match="expected Session1 to Session5, with Session9 to test on"):
        dataset(str(root), "Session9/test_meta_data.json", False)


def test_recordings_of_another_rate_are_refused(tmp_path, make_wave):
    """Their labels would be of other times. A last piece shorter than a frame gets silence."""
    soundfile.write(tmp_path / "a.wav", make_wave(1.0), 16_000)
    wave, rate = read_piece(None, str(tmp_path / "a.wav"), 15_680, 17_000)
    assert (len(wave), rate) == (400, 16_000) and wave[319] != 0 and not wave[320:].any()
    soundfile.write(tmp_path / "b.wav", make_wave(1.0, rate=8_000), 8_000)
    with pytest.raises(AudioError, match="b.wav: 8000 Hz with 1 channel; expected 16000 Hz mono"):
        read_piece(None, str(tmp_path / "b.wav"))


def test_mixtures_need_all_tables(corpus):
    root = corpus("LibriMix")
    (root / "dev" / "segments").unlink()
    with pytest.raises(UsageError, match="there is no dev/segments; expected what LibriMix's prepare_diarization.py"):
        DataRoots({"librimix": str(root)}, False).value("librimix_dev")


def test_trials_are_found_beside_the_corpus(corpus):
    root = corpus("verification")
    given = {"voxceleb1": str(root)}
    assert DataRoots(given, False).value("trials") == str(root / "veri_test2.txt")
    (root / "veri_test2.txt").rename(root / "mine.txt")
    with pytest.raises(UsageError, match="holds no veri_test2.txt .*: give the pairs of files .* with --trials FILE"):
        DataRoots(given, False).value("trials")
    assert DataRoots(given | {"trials": str(root / "mine.txt")}, False).value("trials") == str(root / "mine.txt")


def test_speakers_to_verify_need_audio(tmp_path):
    from s3prl_ofa.superb.compat.caches import secure_caches

    secure_caches("sv_voxceleb1", tmp_path)
    dataset = importlib.import_module("s3prl.downstream.sv_voxceleb1.dataset")
    (tmp_path / "wav").mkdir()
    with pytest.raises(UsageError, match="wav holds no audio; expected SPEAKER/RECORDING/FILE.wav"):
        dataset.SpeakerVerifi_train({"min_sec": 0}, ["Voxceleb1"], [tmp_path / "wav"], None)
