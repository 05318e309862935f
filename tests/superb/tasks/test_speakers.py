"""Speaker identification: the files and labels that S3PRL's SID gets from us."""

import argparse
import hashlib
import importlib.util
import logging
import pathlib
import pickle
import re
import shutil

import pytest
import soundfile
import torch
from paths import CKPT
from superb_corpora import make_voxceleb1, noise

import s3prl_ofa.superb  # noqa: F401  prepares S3PRL for today's stack
from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.tasks.speaker_lists import read_list
from s3prl_ofa.superb.tasks.speakers import VOXCELEB1, feed_s3prl

OWN = {"id10001": "alice", "id10002": "118"}  # new names for the synthetic corpus's speakers


@pytest.fixture
def corpus(tmp_path):
    """VoxCeleb1 of two synthetic speakers; its list is ``prepared/veri_test_class.txt``."""
    make_voxceleb1(tmp_path)
    return tmp_path


@pytest.fixture
def own(corpus):
    """The same with speakers of other names."""
    rename(corpus, OWN)
    return corpus


@pytest.fixture
def voxceleb1():
    """S3PRL's module of the dataset."""
    return importlib.import_module("s3prl.downstream.voxceleb1.dataset")


def rename(corpus: pathlib.Path, names: dict[str, str]) -> None:
    text = list_of(corpus).read_text()
    for old, new in names.items():
        (corpus / "VoxCeleb1/dev/wav" / old).rename(corpus / "VoxCeleb1/dev/wav" / new)
        text = text.replace(f"{old}/", f"{new}/")
    list_of(corpus).write_text(text)


def list_of(corpus: pathlib.Path) -> pathlib.Path:
    return corpus / "prepared" / "veri_test_class.txt"


def config_of(corpus: pathlib.Path, **datarc) -> dict:
    data = {"file_path": str(corpus / "VoxCeleb1"), "meta_data": str(list_of(corpus)), **datarc}
    return {"runner": {"eval_dataloaders": ["dev"]}, "downstream_expert": {"datarc": data}}


def feed(corpus, mode="train", split="test", trained=None, **datarc) -> dict:
    """Feeds S3PRL for a run; returns the config as the experiment stores it."""
    config = config_of(corpus, **datarc)
    feed_s3prl(argparse.Namespace(mode=mode, evaluate_split=split), config, trained)
    return config


def dataset(module, corpus, split="train"):
    return module.SpeakerClassifiDataset(split, corpus / "VoxCeleb1", str(list_of(corpus)))


def labels(module, corpus, split="train") -> dict[str, int]:
    """The label that each speaker's files have."""
    data = dataset(module, corpus, split)
    return {pathlib.Path(file).parts[-3]: label for file, label in zip(data.dataset, data.label, strict=True)}


def run(*options) -> int:
    return cli.main(["run_downstream", *map(str, options)])


def train(corpus, folder, *options, steps=2) -> int:
    data = ["--voxceleb1", corpus / "VoxCeleb1", "--prepared", corpus / "prepared", "--mini", "-d", "sid"]
    return run("-m", "train", "-u", "ofa_wav2vec2", "-k", CKPT, "-p", folder, "-o", runner(steps), *data, *options)


def runner(steps: int) -> str:
    """-o: this many steps, with an evaluation and a checkpoint after every second one."""
    every = [f"config.runner.{name}=2" for name in ("eval_step", "save_step", "log_step")]
    return ",,".join([f"config.runner.total_steps={steps}", *every])


def stored(folder, step=2) -> dict:
    return torch.load(pathlib.Path(folder, f"states-{step}.ckpt"), map_location="cpu", weights_only=True)


def test_voxceleb1s_labels_are_s3prls(corpus, voxceleb1, tmp_path):
    """Files, their order, labels, names and the number of classes are those of S3PRL's code."""
    spec = importlib.util.spec_from_file_location("untouched", voxceleb1.__file__)
    untouched = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(untouched)
    untouched.CACHE_PATH = str(tmp_path / "cache")
    rename(corpus, {"id10002": "id11251"})
    assert "speakers" not in feed(corpus)["downstream_expert"]["datarc"]
    for split in ("train", "dev", "test"):
        ours, theirs = dataset(voxceleb1, corpus, split), dataset(untouched, corpus, split)
        assert ours.dataset == theirs.dataset and ours.label == theirs.label and len(ours.label) >= 2
        assert ours.speaker_num == theirs.speaker_num == 1251
        assert ours[0][1:] == theirs[0][1:] and (ours[0][0] == theirs[0][0]).all()
        assert set(ours.label) == {0, 1250}
    every = list(range(1251))
    classes = voxceleb1.SpeakerClassifiDataset, untouched.SpeakerClassifiDataset
    assert classes[0].label2speaker(every) == classes[1].label2speaker(every) == VOXCELEB1


def test_own_speakers_get_the_labels_of_their_list(own, voxceleb1):
    """Speakers of any name: a class for each, labels in the order of names, stored in the config."""
    config = feed(own)
    assert config["downstream_expert"]["datarc"]["speakers"] == ["118", "alice"]
    assert labels(voxceleb1, own) == {"118": 0, "alice": 1}
    assert dataset(voxceleb1, own).speaker_num == 2
    assert voxceleb1.SpeakerClassifiDataset.label2speaker([1, 0]) == ["alice", "118"]
    rename(own, {"118": "id20001"})
    assert feed(own)["downstream_expert"]["datarc"]["speakers"] == ["alice", "id20001"]


def test_speakers_below_the_root(own, voxceleb1):
    """Without VoxCeleb1's */wav the speakers' folders lie in the root itself."""
    for folder in (own / "VoxCeleb1/dev/wav").iterdir():
        folder.rename(own / "VoxCeleb1" / folder.name)
    shutil.rmtree(own / "VoxCeleb1/dev")
    feed(own)
    assert labels(voxceleb1, own) == {"118": 0, "alice": 1}


def test_an_evaluation_uses_the_trained_labels(own, voxceleb1):
    """Another list of some of the speakers does not change their labels; an unknown speaker is refused."""
    trained = feed(own)
    list_of(own).write_text("3 alice/video/00000.wav\n")
    assert feed(own, "evaluate", trained=trained)["downstream_expert"]["datarc"]["speakers"] == ["118", "alice"]
    assert labels(voxceleb1, own, "test") == {"alice": 1}
    rename(own, {"alice": "zoe"})
    with pytest.raises(
        UsageError, match=r"has speakers that are not among the model's 2 .*zoe \(line 1\).*remove.*or train"
    ):
        feed(own, "evaluate", trained=trained)
    with pytest.raises(UsageError, match=r"among the model's 1251 \(such as id10001\): zoe"):
        feed(own, "evaluate", trained=config_of(own))
    assert feed(own, "evaluate", trained=config_of(own, speakers=["zoe"]), speakers=["other"])
    assert labels(voxceleb1, own, "test") == {"zoe": 0}


def test_speakers_without_training_files(own, caplog):
    """Own speakers that are tested on and not trained on are refused; for VoxCeleb1's, which S3PRL accepts, a warning
    is logged."""
    lines = list_of(own).read_text().replace("1 118/", "3 118/")
    list_of(own).write_text(lines)
    with pytest.raises(UsageError, match=r"speakers without a usable training file: 118 \(line 5\); give each"):
        feed(own)
    list_of(own).write_text(lines.replace("2 118/", "3 118/"))  # of the test split, which is read later
    with pytest.raises(UsageError, match=r"training file: 118 \(line 5\)"):
        feed(own)
    feed(own, "evaluate", trained=config_of(own, speakers=["118", "alice"]))
    rename(own, {"118": "id10002", "alice": "id10001"})
    with caplog.at_level(logging.WARNING):
        feed(own)
    assert "id10002 (line 5); they cannot be recognized" in caplog.text


def test_unusable_files_are_left_out_and_named(own, voxceleb1, caplog):
    """Unusable files are counted and named with their lines at the start, for an evaluation those of its split."""
    folder = own / "VoxCeleb1/dev/wav/alice/video"
    soundfile.write(folder / "00000.wav", noise(1.0, 1), 48_000)
    (folder / "00003.wav").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        feed(own)
    assert "2 of 8 files cannot be used and are left out" in caplog.text
    assert re.search(r"00000.wav: 48000 Hz.*\(line 1\), .*00003.wav: an empty file \(line 4\)", caplog.text)
    assert [pathlib.Path(file).name for file in dataset(voxceleb1, own).dataset] == [
        "00001.wav",
        "00004.wav",
        "00005.wav",
    ]
    caplog.clear()
    feed(own, "evaluate", "dev", trained=config_of(own, speakers=["118", "alice"]))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    (folder / "00001.wav").write_bytes(b"")
    with pytest.raises(UsageError, match="speakers without a usable training file: alice"):
        feed(own)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda own: list_of(own).unlink(), "no speaker list .*prepare voxceleb1"),
        (
            lambda own: (own / "VoxCeleb1/dev/wav/118/video/00005.wav").unlink(),
            r"lists files that are not in .*00005.wav \(line 6\)",
        ),
        (lambda own: (own / "VoxCeleb1/dev/wav/118/video/00007.wav").unlink(), r"00007.wav \(line 8\)"),  # of the test
        (lambda own: shutil.rmtree(own / "VoxCeleb1"), "VoxCeleb1 holds no folders of speakers"),
        (lambda own: list_of(own).write_text("1 118/video/00004.wav\n"), "no usable file of dev .*begins with 2"),
        (lambda own: list_of(own).write_text(""), "no usable file of train"),
        (lambda own: (own / "VoxCeleb1/dev").rename(own / "wav"), "holds no folders of speakers; expected ROOT"),
    ],
)
def test_lists_that_cannot_be_used(change, words, own):
    """A missing list, file, folder or part is reported before anything is trained, with the line and the remedy."""
    change(own)
    with pytest.raises(UsageError, match=words):
        feed(own)


def test_odd_splits_and_configs(own):
    """A split that sid does not have, a config without data and labels that are not labels are refused."""
    with pytest.raises(UsageError, match="sid has no split nonesuch; it has train, dev, test"):
        feed(own, "evaluate", "nonesuch", trained=config_of(own))
    with pytest.raises(UsageError, match="datarc has no file_path"):
        feed_s3prl(argparse.Namespace(mode="train"), {"downstream_expert": None}, None)
    for wrong in ("alice", [], ["a", "a"], [118], {"a": 0}):
        with pytest.raises(UsageError, match="list of different names"):
            feed(own, speakers=wrong)


def test_lists_of_any_editor(tmp_path):
    """A BOM, blank lines, CRLF, tabs and names with spaces."""
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeff1 id1/a.wav\r\n\r\n  2\tal ice/b c.wav \r\n \n3   id1/v/c.wav".encode())
    assert read_list(path) == {"id1/a.wav": (1, 1), "al ice/b c.wav": (2, 3), "id1/v/c.wav": (3, 5)}


@pytest.mark.parametrize(
    "line",
    [
        "4 a/b.wav",
        "1",
        "a/b.wav",
        "1 b.wav",
        "1 a/",
        "1 /a/b.wav",
        "1 ../b.wav",
        "1 a/../b/u.wav",
        "1 a/./b.wav",
        "1 a/v/..",
        "train a/b.wav",
        "01 a/b",
    ],
)
def test_malformed_lines_are_named(line, tmp_path):
    """A malformed line: file, line number, what was expected and what was found."""
    path = tmp_path / "list.txt"
    path.write_text(f"1 a/a.wav\n\n{line}\n")
    expected = f"list.txt, line 3: expected 1 (train), 2 (dev) or 3 (test) and a file SPEAKER/..., found {line!r}"
    with pytest.raises(UsageError, match=re.escape(expected)):
        read_list(path)


def test_a_file_is_listed_once(tmp_path):
    """A file in two parts would be both trained and tested on."""
    path = tmp_path / "list.txt"
    path.write_text("1 a/a.wav\n3 a/a.wav\n")
    with pytest.raises(UsageError, match="line 2: a/a.wav is already in line 1"):
        read_list(path)
    path.write_bytes(b"1 a/a.wav\n1 caf\xe9/a.wav\n")
    with pytest.raises(UsageError, match="list.txt.*not UTF-8 text"):
        read_list(path)


def test_own_speakers_through_s3prl(own, tmp_path, capsys):
    """Training, resuming and evaluating on own speakers; then on another list, and with the corpus moved."""
    exp = tmp_path / "exp"
    assert train(own, exp) == 0
    states = stored(exp)
    assert states["Config"]["downstream_expert"]["datarc"]["speakers"] == ["118", "alice"]
    assert "speakers:" in (exp / "config.yaml").read_text()
    heads = [value for name, value in states["Downstream"].items() if name.startswith("model.") and value.ndim == 2]
    assert len(heads[-1]) == 2
    assert run("-m", "train", "-e", exp, "-o", runner(4)) == 0
    assert {line.split()[1] for line in (exp / "dev_truth.txt").read_text().splitlines()} == {"118", "alice"}
    (own / "VoxCeleb1").rename(own / "moved")
    list_of(own).write_text("3 alice/video/00003.wav\n")
    moved = ["--voxceleb1", own / "moved"]
    assert run("-m", "evaluate", "-e", exp, *moved) == 0
    assert (exp / "test_truth.txt").read_text().split()[1] == "alice"
    (own / "moved/dev/wav/alice").rename(own / "moved/dev/wav/zoe")
    list_of(own).write_text("3 zoe/video/00003.wav\n")
    task = ["-d", "sid", "--mini", "-u", "ofa_wav2vec2", "-k", CKPT, "--prepared", own / "prepared"]
    for past in (["-e", exp], ["-i", exp / "dev-best.ckpt", "-p", tmp_path / "other", *task]):
        capsys.readouterr()
        assert run("-m", "evaluate", *past, *moved) == 2
        assert "among the model's 2 (such as 118): zoe (line 1)" in capsys.readouterr().err


def test_initial_weights_bring_their_labels(own, tmp_path):
    """-i: the labels are those that the weights were trained with, whatever the list says."""
    assert train(own, tmp_path / "exp") == 0
    list_of(own).write_text("1 alice/video/00000.wav\n2 alice/video/00002.wav\n")
    assert train(own, tmp_path / "more", "-i", tmp_path / "exp" / "dev-best.ckpt", steps=4) == 0
    assert stored(tmp_path / "more", 4)["Config"]["downstream_expert"]["datarc"]["speakers"] == ["118", "alice"]


class Hostile:
    """Creates the file that it names when it is unpickled."""

    def __init__(self, marker: pathlib.Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (self.marker,)


def test_pickles_are_never_opened(corpus, tmp_path, voxceleb1, monkeypatch):
    """A foreign experiment with pickled file lists, S3PRL's among them, is resumed without running any of them."""
    monkeypatch.setattr(voxceleb1, "CACHE_PATH", str(tmp_path / "cache"))
    exp, marker = tmp_path / "exp", tmp_path / "marker"
    assert train(corpus, exp) == 0
    assert not list(exp.rglob("*.pkl"))
    list_and_root = list_of(corpus).read_bytes() + str(corpus / "VoxCeleb1").encode()
    digest = hashlib.sha256(list_and_root).hexdigest()[:16]
    for folder in (exp / "sid_file_lists" / digest, tmp_path / "cache"):
        folder.mkdir(parents=True)
        for split in ("train", "dev", "test"):
            (folder / f"{split}.pkl").write_bytes(pickle.dumps(Hostile(marker)))
    pickle.loads(pickle.dumps(Hostile(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    assert run("-m", "train", "-e", exp, "-o", runner(4)) == 0
    assert run("-m", "evaluate", "-e", exp) == 0
    assert not marker.exists()
    for path in exp.rglob("*.pkl"):
        path.write_bytes(b"\x80\x04")  # cut off by a kill
    assert run("-m", "train", "-a", "-p", exp, "-o", runner(6)) == 0
