"""LibriSpeech-like folders as users have them: one parser, the same usable utterances for every command."""

import csv
import importlib
import pathlib

import numpy as np
import pytest
import soundfile
from superb_corpora import make_librispeech, noise

from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.io import verified
from s3prl_ofa.superb.tasks import configs, corpora, labels

APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        \x00\x02\x00\x00\x00\x09\xb0\xff\xfe"
SPLITS = ("train-mini", "dev-mini", "test-mini")


@pytest.fixture
def root(tmp_path):
    make_librispeech(tmp_path)
    return tmp_path


@pytest.fixture
def chapter(root):
    """The folder of the training utterances 11-22-0000 to 11-22-0005."""
    return root / "LibriSpeech" / "train-mini" / "11" / "22"


@pytest.fixture(autouse=True)
def nothing_was_logged_before():
    corpora.warn_once.cache_clear()


def edit(chapter, change):
    """Changes the transcript of a chapter by a function of its bytes."""
    path = chapter / "11-22.trans.txt"
    path.write_bytes(change(path.read_bytes()))


def config(task, root, **roots):
    given = {"librispeech": str(root / "LibriSpeech"), "prepared": str(root / "prepared"), **roots}
    return configs.resolve_config(task, None, True, given)


def used_by(task, root, split="train") -> dict[str, list[int]]:
    """The label ids of a split of asr or pr, by the name of the audio file."""
    found = labels.labeled(configs.S3PRL_DOWNSTREAM[task], config(task, root), split)
    return {pathlib.Path(path).name: ids for path, ids in found}


def prepare(*arguments) -> int:
    return cli.main(["prepare", *map(str, arguments)])


def prepared(root, what, *arguments) -> int:
    return prepare(what, "--librispeech", root / "LibriSpeech", "--out", root / "prepared", "--force", *arguments)


def in_bucket(root, split="train-mini") -> set[str]:
    with open(root / "prepared" / "bucket" / f"{split}.csv", newline="") as file:
        return {pathlib.Path(row["file_path"]).name for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    "change",
    [
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b"11-22-0001 ", b"11-22-0001\t").replace(b"11-22-0002 ", b"  11-22-0002 \t "),
        lambda text: b"\n" + text.replace(b"\n", b"\n \n\n"),
        lambda text: text.replace(b"\n", b"  \t\n"),
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.replace(b"\n", b"\r"),
        lambda text: text.replace(b" CAT", b"  cat").rstrip(),
        lambda text: text + text,
    ],
    ids=["BOM", "tabs", "blank lines", "trailing spaces", "CRLF", "CR", "spaces and small letters", "lines twice"],
)
@pytest.mark.parametrize("task", ["asr", "pr"])
def test_transcripts_of_any_editor(task, change, root, chapter):
    """What editors do to a text file changes no utterance and no label."""
    before = used_by(task, root)
    assert len(before) == 6
    edit(chapter, change)
    assert used_by(task, root) == before


@pytest.mark.parametrize("task", ["asr", "pr"])
def test_files_of_macos_are_ignored(task, root, chapter):
    """No reader takes ``._*`` and ``.DS_Store`` beside transcripts, audio and splits for data."""
    before = used_by(task, root)
    for name in ("._11-22.trans.txt", "._11-22-0000.flac", ".DS_Store", ".hidden.trans.txt"):
        (chapter / name).write_bytes(APPLE_DOUBLE)
    (chapter.parent / ".DS_Store").write_bytes(APPLE_DOUBLE)
    (root / "LibriSpeech" / "._train-mini").write_bytes(APPLE_DOUBLE)
    empty = root / "LibriSpeech" / "extra" / "1" / "2"
    empty.mkdir(parents=True)
    (empty / "._1-2.trans.txt").write_bytes(APPLE_DOUBLE)
    assert used_by(task, root) == before
    assert corpora.splits_with(root / "LibriSpeech", corpora.TRANSCRIPT) == sorted(SPLITS)
    assert prepared(root, "bucket") == 0 and in_bucket(root) == set(before)


@pytest.mark.parametrize("task", ["asr", "pr"])
def test_dots_in_names(task, root, chapter):
    """Utterances whose names differ only after a dot are kept apart, each with its labels."""
    before = used_by(task, root)
    for index, name in enumerate(("11-22.1", "11-22.2")):
        (chapter / f"11-22-000{index}.flac").rename(chapter / f"{name}.flac")
        edit(chapter, lambda text, old=f"11-22-000{index}", new=name: text.replace(old.encode(), new.encode()))
    assert prepared(root, "bucket") == 0
    after = used_by(task, root)
    assert after["11-22.1.flac"] == before["11-22-0000.flac"] and after["11-22.2.flac"] == before["11-22-0001.flac"]
    assert len(after) == 6


def test_any_format_of_audio(root, chapter):
    """Each utterance may have another format; of one in two formats, the first by name is used, once."""
    wave, rate = soundfile.read(chapter / "11-22-0000.flac")
    (chapter / "11-22-0000.flac").unlink()
    soundfile.write(chapter / "11-22-0000.WAV", wave, rate)
    soundfile.write(chapter / "11-22-0001.wav", noise(2.0, 0), 16_000)
    (chapter / "11-22-0002.aac").write_bytes(b"of no use, and not needed")
    assert prepared(root, "bucket") == 0
    assert used_by("asr", root).keys() == used_by("pr", root).keys() == in_bucket(root)
    assert {"11-22-0000.WAV", "11-22-0001.flac"} <= in_bucket(root) and len(in_bucket(root)) == 6


def spoil(chapter) -> dict[str, str]:
    """Makes utterances unusable; returns the reasons by the names that are left out."""
    soundfile.write(chapter / "11-22-0000.flac", np.stack([noise(2.0, 0)] * 2, 1), 16_000)
    soundfile.write(chapter / "11-22-0001.flac", noise(2.0, 0), 48_000)
    soundfile.write(chapter / "11-22-0002.flac", np.zeros(300, np.float32), 16_000)
    whole = (chapter / "11-22-0004.flac").read_bytes()
    (chapter / "11-22-0004.flac").write_bytes(whole[: len(whole) // 3])
    edit(chapter, lambda text: text.replace(b"11-22-0003 GOOD DOG", b"11-22-0003") + b"11-22-0009 THE CAT\n")
    soundfile.write(chapter / "11-22-0008.flac", noise(2.0, 0), 16_000)
    return {
        "11-22-0000.flac": "16000 Hz with 2 channels",
        "11-22-0001.flac": "48000 Hz with 1 channel",
        "11-22-0002.flac": "300 samples",
        "11-22-0004.flac": "cut short: the last of",
        "11-22-0003.flac": f"no text in {chapter}/11-22.trans.txt, line 4",
        "11-22-0008.flac": "no line in a *.trans.txt",
        "11-22-0009": f"no audio for {chapter}/11-22.trans.txt, line 7",
    }


def test_every_command_leaves_out_the_same(root, chapter, caplog, capsys):
    """Prepare and the readers of asr and pr leave out, name and count the same unusable files."""
    reasons = spoil(chapter)
    assert prepared(root, "bucket") == 1 and "7 files were left out" in capsys.readouterr().err
    report = dict(line.split("\t") for line in (root / "prepared" / "bad_audio.tsv").read_text().splitlines())
    assert {pathlib.Path(path).name for path in report} == reasons.keys()
    for path, why in report.items():
        assert why.startswith(reasons[pathlib.Path(path).name])
    assert in_bucket(root) == {"11-22-0005.flac"}
    for task in ("asr", "pr", "asr", "pr"):
        assert used_by(task, root).keys() == in_bucket(root)
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == 1, "once, not once an epoch"
    assert "7 of 8 utterances are left out" in said[0] and said[0].endswith(" and 4 more")
    assert f"{chapter}/11-22-0000.flac (16000 Hz with 2 channels" in said[0] and "300 samples" in said[0]
    for what, arguments in (("vocabulary", ()), ("lexicon", ("--lexicon", root / "prepared" / "lexicon.txt"))):
        assert prepared(root, what, *arguments) == 1
        assert "7 files were left out" in capsys.readouterr().err


def test_an_old_bucket_file_does_not_hide_what_has_changed(root, chapter, caplog):
    """asr checks the files of its table too, and names what is only in the table or only in the corpus."""
    spoil(chapter)
    (chapter / "11-22-0004.flac").unlink()
    soundfile.write(chapter / "11-22-0007.flac", noise(2.0, 0), 16_000)
    edit(chapter, lambda text: text + b"11-22-0007 THE HAT\n")
    assert used_by("asr", root).keys() == {"11-22-0005.flac"}
    assert "8 of 9 utterances are left out" in caplog.text
    found = used_by("pr", root)
    assert found.keys() == {"11-22-0005.flac", "11-22-0007.flac"}


def test_formats_that_cannot_be_read_are_named(root, chapter, caplog):
    """An utterance in such a format is left out, and the message says how to convert it."""
    (chapter / "11-22-0003.flac").unlink()
    (chapter / "11-22-0003.m4a").write_bytes(b"\0\0\0 ftypM4A ")
    assert prepared(root, "bucket") == 1 and len(in_bucket(root)) == 5
    assert used_by("asr", root).keys() == used_by("pr", root).keys() == in_bucket(root)
    assert "11-22-0003.m4a (cannot be read as audio" in caplog.text and "convert it: ffmpeg" in caplog.text


def test_nothing_usable_is_an_error(root, chapter):
    """A split without a usable utterance is refused with the reasons."""
    for path in chapter.glob("*.flac"):
        soundfile.write(path, np.zeros(300, np.float32), 16_000)
    for task in ("asr", "pr"):
        with pytest.raises(UsageError, match="train-mini: none of 6 utterances can be used: .*300 samples"):
            used_by(task, root)


@pytest.mark.parametrize("task", ["asr", "pr"])
def test_two_texts_for_one_utterance(task, root, chapter, caplog):
    """An utterance with two different texts is left out with both lines; S3PRL would silently take the last."""
    edit(chapter, lambda text: text + b"11-22-0000 A DOG SAT\n")
    assert "11-22-0000.flac" not in used_by(task, root)
    assert "has different texts in " in caplog.text and f" and {chapter}/11-22.trans.txt, line 7" in caplog.text


@pytest.mark.parametrize(
    ("encoded", "line"),
    [("11-22-0001 CAFÉ\n".encode("latin-1"), 2), ("11-22-0001 CAT\n".encode("utf-16-le"), 2)],
    ids=["Latin-1", "UTF-16"],
)
@pytest.mark.parametrize("reader", ["asr", "pr", "bucket", "lexicon", "vocabulary"])
def test_other_encodings(reader, encoded, line, root, chapter, capsys):
    """A transcript that is not UTF-8 is refused with file, line and what to do."""
    edit(chapter, lambda text: text.splitlines(keepends=True)[0] + encoded)
    words = f"{chapter}/11-22.trans.txt, line {line}: not UTF-8 text"
    if reader in ("asr", "pr"):
        with pytest.raises(UsageError) as caught:
            used_by(reader, root)
        message = str(caught.value)
    else:
        assert prepared(root, reader) == 2
        message = capsys.readouterr().err
    assert words in message and "iconv -f ENCODING -t UTF-8" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "there is no .*train-mini.csv; `s3prl-ofa prepare bucket"),
        ("", "expected the columns file_path and length"),
        ("path,samples\na.flac,3\n", "expected the columns file_path and length"),
        ("file_path,length\na.flac,many\n", "expected the columns file_path and length .*many"),
        ("file_path,length\na.flac,nan\n", "expected the columns file_path and length .*NaN"),
        ("file_path,length\n,3\n", "none of 7 utterances can be used"),
    ],
)
def test_bad_bucket_files(content, words, root):
    """A table that is missing or no table is refused; S3PRL skips a missing one."""
    path = root / "prepared" / "bucket" / "train-mini.csv"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError, match=words):
        used_by("asr", root)


@pytest.mark.parametrize("bucket_size", [1, 2, 4, 5, 6, 32])
@pytest.mark.parametrize("split", ["train", "dev-clean"])
def test_batches_and_labels_are_those_of_s3prl(split, bucket_size, root):
    """On a clean corpus the batches, their order, waves, labels and names are S3PRL's."""
    module = importlib.import_module("s3prl.downstream.asr.dataset")
    expert = importlib.import_module("s3prl.downstream.asr.expert")
    datarc = config("asr", root)["downstream_expert"]["datarc"]
    dictionary = expert.Dictionary.load(datarc["dict_path"])
    ours, theirs = (
        made(split, bucket_size, dictionary, **datarc) for made in (expert.SequenceDataset, module.SequenceDataset)
    )
    assert type(ours) is not type(theirs) and ours.X == theirs.X and len(ours) == len(theirs) > 0
    for index in range(len(ours)):
        for mine, other in zip(ours[index], theirs[index], strict=True):
            assert all(np.array_equal(a, b) and type(a) is type(b) for a, b in zip(mine, other, strict=True))
    assert len(dictionary) == 32


def test_every_utterance_is_scored(root):
    """A last batch of one utterance is dropped from training, as in S3PRL, but not from scoring."""
    expert = importlib.import_module("s3prl.downstream.asr.expert")
    datarc = {**config("asr", root)["downstream_expert"]["datarc"], "dev-clean": ["train-mini"]}
    dictionary = expert.Dictionary.load(datarc["dict_path"])
    counts = {
        split: len(sum(expert.SequenceDataset(split, 5, dictionary, **datarc).X, []))
        for split in datarc.keys() & {"train", "dev-clean"}
    }
    assert counts == {"train": 5, "dev-clean": 6}


def test_upper_case():
    """Upper case is Unicode's, and a letter with its accents is one label however it was typed."""
    assert corpora.upper_case("straße, привет, cafe\u0301, 你好") == "STRASSE, ПРИВЕТ, CAFÉ, 你好"


@pytest.mark.parametrize("task", ["asr", "pr"])
@pytest.mark.parametrize("damage", ["FLAC", "NaN"])
def test_audio_is_decoded_before_a_training(task, damage, root, chapter, caplog):
    """A fault that only decoding shows does not end a training hours later: the file is left out and named at the
    start, as by ``prepare``."""
    before = used_by(task, root)
    path = chapter / "11-22-0001.flac"
    if damage == "FLAC":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] + bytes(200) + content[len(content) // 2 + 200 :])
    else:
        wave = noise(2.0, 0)
        wave[5_000] = np.nan
        soundfile.write(path, wave, 16_000, format="WAV", subtype="FLOAT")
    assert used_by(task, root) == {name: ids for name, ids in before.items() if name != path.name}
    assert "1 of 6 utterances are left out" in caplog.text and path.name in caplog.text
    assert prepared(root, "bucket") == 1
    assert prepared(root, "lexicon", "--lexicon", root / "prepared" / "lexicon.txt") == 1
    assert path.name not in used_by(task, root)


@pytest.mark.parametrize("task", ["asr", "pr"])
def test_what_prepare_has_decoded_is_not_decoded_again(task, root, monkeypatch):
    """The record beside the files of ``prepare`` spares a task the decoding, also with an empty cache folder."""
    assert prepared(root, "bucket") == 0
    monkeypatch.setattr(verified, "verdicts", {})
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "another"))
    monkeypatch.setattr(verified, "decode", None)
    assert len(used_by(task, root)) == 6


def test_a_split_without_transcripts_is_named(root, chapter, capsys):
    """A folder of speech whose transcripts are missing, or have another name, is not a split, and prepare says so."""
    (chapter / "11-22.trans.txt").rename(chapter / "11-22.TXT")
    assert prepared(root, "bucket") == 1
    told = capsys.readouterr().err
    assert f"left out: {root / 'LibriSpeech' / 'train-mini'}: no split: it holds speaker/chapter/" in told
    assert prepared(root, "bucket", "--splits", "dev-mini") == 0


@pytest.mark.parametrize("task", ["asr", "pr"])
def test_accents_in_names_match_in_either_form(task, root, chapter):
    """macOS decomposes accented letters in file names; transcripts mostly have them composed."""
    before = used_by(task, root)["11-22-0001.flac"]
    (chapter / "11-22-0001.flac").rename(chapter / "11-\u0065\u0301-0001.flac")
    edit(chapter, lambda text: text.replace(b"11-22-0001", "11-\u00e9-0001".encode()))
    assert prepared(root, "bucket") == 0
    assert used_by(task, root)["11-\u0065\u0301-0001.flac"] == before
