"""Pretraining runs nothing that it reads: checkpoints, and configurations that name code."""

import os

import pytest
import torch
from pretraining import corpus_settings, make_corpus, run_here, write_config


class Touch:
    """Makes a folder when it is unpickled without care."""

    def __reduce__(self):
        return os.mkdir, ("marker",)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"), train=2)


@pytest.fixture
def train(corpus, tmp_path, monkeypatch, capfd):
    """A function (*overrides, **sections of the configuration) -> (status, message); none of it makes ``marker``."""
    monkeypatch.chdir(tmp_path)

    def call(*overrides, **sections):
        config = write_config(tmp_path / "config" / "tiny.yaml", **sections)
        status = run_here(["--config", config, *corpus_settings(corpus, tmp_path / "out"), *overrides])
        assert not list(tmp_path.rglob("marker"))
        return status, capfd.readouterr().err.strip().splitlines()[-1]

    return call


TOUCH = "__import__('pathlib').Path('marker').touch()"
CALL = {"_target_": "pathlib.Path.touch", "self": "marker"}
LOGGING = {"version": 1, "root": {"handlers": ["x"]}}
NAMED = {
    "adam_betas": ({"optimizer": {"adam_betas": f"({TOUCH}, 0.98)"}}, "is not run: expected a value or a plain name"),
    "user_dir": ({"common": {"user_dir": "config"}}, "common.user_dir is for fairseq-hydra-train"),
    "callbacks": (
        {"hydra": {"callbacks": {"x": CALL}}},
        "hydra.callbacks.x._target_: 'pathlib.Path.touch' is not built",
    ),
    "launcher": (
        {"hydra": {"launcher": {"_target_": "theirs.make"}}},
        "hydra.launcher._target_: 'theirs.make' is not built",
    ),
    "handler": (
        {"hydra": {"job_logging": {**LOGGING, "handlers": {"x": {"class": "theirs.Handler"}}}}},
        "hydra.job_logging.handlers.x.class: 'theirs.Handler' is not built",
    ),
    "factory": (
        {"hydra": {"hydra_logging": {**LOGGING, "handlers": {"x": {"()": "theirs.make"}}}}},
        "hydra.hydra_logging.handlers.x.(): 'theirs.make' is not built",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_code_that_a_configuration_names(train, name, tmp_path):
    """One sentence with the key, and nothing is imported, built or called."""
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "__init__.py").write_text("import pathlib\npathlib.Path('marker').touch()\n")
    (tmp_path / "theirs.py").write_text("import pathlib\npathlib.Path('marker').touch()\nmake = Handler = print\n")
    sections, said = NAMED[name]
    status, message = train(**sections)
    assert status == 2 and message.startswith("s3prl-ofa pretrain: error: ") and said in message


@pytest.mark.parametrize("variable", ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "OTHER"])
def test_a_hostile_checkpoint_to_resume_from(train, variable, tmp_path, monkeypatch):
    """fairseq resumes from its folder; a checkpoint that asks for more than weights is refused by name."""
    monkeypatch.setenv(variable, "1")
    last = tmp_path / "out" / "checkpoints" / "checkpoint_last.pt"
    last.parent.mkdir(parents=True)
    torch.save({"model": {}, "args": Touch()}, last)
    status, message = train()
    assert status == 2 and f"error: {last}: refused, because it asks to run or build posix.mkdir" in message
    assert "weights_only" not in message and "save it again with only weights and plain values" in message
