"""The folder of an experiment: where it is, who may write to it, and what a kill leaves in it."""

import fcntl
import pathlib
import re

import pytest
import torch
from paths import CKPT

from s3prl_ofa import cli
from s3prl_ofa.superb.downstream import checkpoints
from s3prl_ofa.superb.upstream.rate_options import RateOptions, read_model_config

STEPS = "config.runner.total_steps={0},,config.runner.eval_step=2,,config.runner.save_step=2,,config.runner.max_keep=1"


@pytest.fixture
def train(corpora, tmp_path, monkeypatch):
    """A function (*options, steps=2, ckpt=CKPT) that trains SID and returns the exit status."""
    monkeypatch.chdir(tmp_path)
    data = ["--voxceleb1", str(corpora / "VoxCeleb1"), "--prepared", str(corpora / "prepared"), "--mini"]

    def call(*options, steps=2, ckpt=CKPT):
        task = ["-m", "train", "-d", "sid", "-u", "ofa_wav2vec2", "-k", ckpt, *data]
        return cli.main(["run_downstream", *task, "-o", STEPS.format(steps), *options])

    return call


def resume(*options, mode="evaluate") -> int:
    return cli.main(["run_downstream", "-m", mode, *options])


def stored(path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def runs_recorded(folder) -> int:
    return len(list(pathlib.Path(folder).glob("args_*.yaml")))


def truncate(path) -> None:
    path = pathlib.Path(path)
    path.write_bytes(path.read_bytes()[:1000])


def test_an_experiment_stays_in_its_folder(train, tmp_path, monkeypatch):
    """A relative -n is kept absolute; -e from another folder and after a move writes to the folder it names."""
    assert train("-n", "exp") == 0
    first = tmp_path / "result" / "downstream" / "exp"
    assert stored(first / "states-2.ckpt")["Args"].expdir == str(first)
    moved = tmp_path / "moved"
    first.rename(moved)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for past, steps in (("../moved", 4), ("../moved/states-4.ckpt", 6)):
        before = set(moved.iterdir())
        assert resume("-e", past) == 0
        assert resume("-e", past, "-o", f"config.runner.total_steps={steps}", mode="train") == 0
        assert set(moved.iterdir()) - before
    assert stored(moved / "states-6.ckpt")["Args"].expdir == str(moved)
    assert not first.exists() and not list((tmp_path / "elsewhere").iterdir())


MISSING = "the trained {} is needed and missing"
FOREIGN = {
    "no weights": ("Downstream", None, MISSING),
    "empty": ("Downstream", {}, MISSING),
    "no layer weights": ("Featurizer", {}, MISSING),
    "another shape": ("Downstream", {"projector.bias": torch.zeros(3)}, "the checkpoint's {} does not fit: .*shape"),
    "a number": ("Featurizer", {"weights": 3}, "the checkpoint's {} does not fit: "),
    "not finite": ("Downstream", {"projector.bias": torch.full((256,), torch.nan)}, "projector.bias of {} holds NaN"),
    "a name": ("Downstream", {3: torch.zeros(2)}, "the checkpoint's {} does not fit: "),
    "no state": ("Optimizer", {}, MISSING),
    "another state": ("Optimizer", {"state": 3, "param_groups": []}, "the checkpoint's {} does not fit: .*groups"),
}


def test_states_that_do_not_fit(train, capfd):
    """An experiment is not scored with random weights, and not trained on from another optimizer's state."""
    assert train("-p", "exp") == 0
    states = stored("exp/states-2.ckpt")
    for case, (name, content, said) in FOREIGN.items():
        foreign = content if not content or name == "Optimizer" else {**states[name], **content}
        torch.save({**states, name: foreign or {}}, "exp/states-2.ckpt")
        mode = "train" if name == "Optimizer" else "evaluate"
        assert resume("-e", "exp", *["-o", STEPS.format(4)] * (mode == "train"), mode=mode) == 2, case
        assert re.search("error: .*" + said.format(name), capfd.readouterr().err), case
    torch.save(states, "exp/states-2.ckpt")
    assert resume("-e", "exp") == 0


def test_a_config_of_more_weights_than_the_checkpoint(train, capfd):
    """They are counted before they take memory."""
    assert train("-p", "exp") == 0
    states = stored("exp/states-2.ckpt")
    states["Config"]["downstream_expert"]["modelrc"]["projector_dim"] = 10**6
    torch.save(states, "exp/states-2.ckpt")
    assert resume("-e", "exp") == 2
    assert re.search(r"error: .*asks for \d+ weights or more, the checkpoint holds \d+", capfd.readouterr().err)


def test_an_evaluation_needs_weights(corpora, train, capfd):
    """A task's model that was never trained has no score."""
    data = ["-d", "sid", "--voxceleb1", str(corpora / "VoxCeleb1"), "--prepared", str(corpora / "prepared"), "--mini"]
    assert resume("-p", "exp", "-u", "ofa_wav2vec2", "-k", CKPT, *data) == 2
    assert MISSING.format("Downstream") in capfd.readouterr().err


def test_override_of_the_folder_leaves_no_stale_one(train, tmp_path):
    """-o args.expdir wins, made absolute, for new and resumed experiments; no empty folder is left."""
    assert train("-n", "unused", "-o", STEPS.format(2) + ",,args.expdir=exp") == 0
    assert stored("exp/states-2.ckpt")["Args"].expdir == str(tmp_path / "exp")
    assert not pathlib.Path("result/downstream/unused").exists()
    before = runs_recorded("exp")
    assert resume("-e", "exp", "-o", "args.expdir=other") == 0
    assert (runs_recorded("exp"), runs_recorded("other")) == (before, 1)


def test_a_kill_while_saving_leaves_a_whole_checkpoint(train, monkeypatch, capfd):
    """Killed in the middle of a save, the experiment still has its last checkpoint, and resumes from it."""
    assert train("-p", "exp") == 0
    save = torch.save

    def killed(states, file, *args):
        if states["Step"] == 4:
            (file.write if hasattr(file, "write") else pathlib.Path(file).write_bytes)(b"half")
            raise KeyboardInterrupt
        save(states, file, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        assert train("-p", "exp", "-a", steps=6) == 130
    assert [path.name for path in pathlib.Path("exp").glob("states-*")] == ["states-2.ckpt"]
    assert train("-p", "exp", "-a", steps=6) == 0
    assert [path.name for path in pathlib.Path("exp").glob("states-*")] == ["states-6.ckpt"]  # max_keep holds
    assert stored("exp/states-6.ckpt")["Step"] == 6


def test_older_checkpoints_go_after_the_new_one(tmp_path):
    """What S3PRL removes first stays until the next states-*.ckpt is in place, which is never removed."""
    saves, old, new = checkpoints.SafeSaves(), tmp_path / "states-2.ckpt", tmp_path / "states-4.ckpt"
    saves.save({"Step": 2}, str(old))
    new.write_bytes(b"cut off")
    saves.remove(str(old)), saves.remove(str(new))
    saves.save({"Step": 4}, str(tmp_path / "dev-best.ckpt"))
    assert old.exists()
    saves.save({"Step": 4}, str(new))
    assert not old.exists() and stored(new) == {"Step": 4}
    assert {path.name for path in tmp_path.iterdir()} == {"states-4.ckpt", "dev-best.ckpt"}


@pytest.mark.parametrize("cut", [b"", b"half"])
def test_an_unreadable_checkpoint_is_passed_over(train, cut, caplog, capfd):
    """The newest states-*.ckpt that can be read is taken, and the others are named; none at all is bad use."""
    assert train("-p", "exp") == 0
    pathlib.Path("exp/states-10.ckpt").write_bytes(cut)
    pathlib.Path("exp/.states-10.abcd_123.ckpt").write_bytes(cut)  # of a killed training
    assert resume("-e", "exp", "-o", "config.runner.total_steps=4", mode="train") == 0
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any("states-10.ckpt cannot be read" in line and "states-2.ckpt" in line for line in warned)
    assert stored("exp/states-4.ckpt")["Step"] == 4
    assert not pathlib.Path("exp/.states-10.abcd_123.ckpt").exists()

    truncate("exp/states-4.ckpt")
    for past in ("exp", "exp/states-4.ckpt"):
        assert resume("-e", past) == 2
        message = capfd.readouterr().err.strip().splitlines()[-1]
        assert "states-4.ckpt cannot be read" in message and "-e FILE" in message
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", CKPT]) == 2  # a checkpoint, and of no experiment
    evaluate = ["-m", "evaluate", "-i", "exp/states-4.ckpt", "-p", "other"]
    assert train(*evaluate) == 2
    assert "states-4.ckpt cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize("kept", ["states-2.ckpt", "dev-best.ckpt"])
def test_a_new_training_does_not_overwrite_an_earlier_one(train, kept, capfd, tmp_path):
    """A folder that holds an experiment is refused for a new one, and stays as it is."""
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / kept).write_bytes(b"earlier")
    assert train("-p", "exp") == 2
    assert "exp holds an experiment; -a or -e resumes it" in capfd.readouterr().err
    assert [path.name for path in (tmp_path / "exp").iterdir()] == [kept]
    assert (tmp_path / "exp" / kept).read_bytes() == b"earlier"


def test_a_training_that_never_saved_starts_again(train, tmp_path):
    """A training that ended before its first checkpoint left a config and logs: the same command starts it again."""
    (tmp_path / "exp").mkdir()
    (tmp_path / "exp" / "config.yaml").write_bytes(b"earlier")
    (tmp_path / "exp" / "events.out.tfevents.1").write_bytes(b"")
    assert train("-p", "exp") == 0
    assert (tmp_path / "exp" / "config.yaml").read_bytes() != b"earlier"


def test_one_training_per_folder(train, capfd, tmp_path):
    """While one process trains in a folder another one is refused; a lock file left behind does not matter."""
    assert train("-p", "exp") == 0
    assert not pathlib.Path("exp/.lock").exists()
    with open("exp/.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert train("-p", "exp", "-a", steps=4) == 2
        assert "exp is in use by another process" in capfd.readouterr().err
        assert resume("-e", "exp") == 0  # looking at it is fine
    assert train("-p", "exp", "-a", steps=4) == 0


def test_a_rate_by_override_changes_the_trained_one(train, caplog):
    """-o on the model config changes what it names; frames stay as trained, and the trained rate is logged."""
    assert train("-p", "exp", "--lambd", "0.5") == 0
    caplog.clear()
    assert resume("-e", "exp", "-o", "args.upstream_model_config={lambd: 0.9}") == 0
    assert "was trained at lambd 0.5, native frames; it now runs at lambd 0.9, native frames" in caplog.text
    rate = RateOptions.layered(read_model_config(stored("exp/states-2.ckpt")["Args"].upstream_model_config))
    assert rate == RateOptions(lambd=0.5, output_frames="native")


def test_options_that_an_experiment_has_of_its_own(train, tmp_path, caplog, capfd):
    """On resume a moved checkpoint is honoured, the options that count for nothing are named, --repeat auto too."""
    model = tmp_path / "model.pt"
    model.write_bytes(pathlib.Path(CKPT).read_bytes())
    assert train("-p", "exp", "--lambd", "0.5", "--repeat", "2", ckpt=str(model)) == 0
    model.rename(tmp_path / "moved.pt")
    assert resume("-e", "exp") == 2
    assert "model.pt; say with -k FILE" in capfd.readouterr().err
    caplog.clear()
    assert resume("-e", "exp", "-k", "moved.pt") == 0
    assert [record.getMessage() for record in caplog.records if record.getMessage().startswith("-k: ")] == [
        f"-k: {tmp_path / 'moved.pt'} in place of {model}"
    ]
    assert "has no effect" not in caplog.text
    caplog.clear()
    ignored = ["-u", "fbank", "-d", "asr", "-c", "my.yaml", "-g", "{lambd: 0.9}", "-p", "other"]
    assert resume("-e", "exp", "-k", "moved.pt", "--mini", "--repeat", "auto", *ignored) == 0
    assert "--mini, -u, -d, -c, -g, -n or -p has no effect" in caplog.text
    assert "the experiment's own repeat, 2, is used" in caplog.text
    assert "lambd 0.5, native frames, each 2 times" in caplog.text
    assert not pathlib.Path("other").exists()
    caplog.clear()
    assert resume("-e", "exp", "-k", "moved.pt", "-u", "ofa_wav2vec2", "-d", "sid") == 0  # the same again
    assert "has no effect" not in caplog.text
