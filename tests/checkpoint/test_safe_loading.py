"""Nothing is run in checkpoints of S3PRL's other upstreams, or in what S3PRL and fairseq evaluate."""

import argparse
import ast
import builtins
import functools
import importlib
import io
import os
import pathlib
import pickle
import re
import types

import pytest
import torch
import yaml
from paths import CKPT, ROOT

from s3prl_ofa import cli
from s3prl_ofa.checkpoint import safe_loading
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.guidance.features import UpstreamHidden
from s3prl_ofa.superb import registration
from s3prl_ofa.superb.compat import plain_names

registration.register()
SID = str(ROOT / "downstream_configs" / "sid_mini.yaml")
DISTILLER = {
    "extractor_conv_feature_layers": "[(8, 10, 5)] + [(8, 3, 2)] * 4 + [(8, 2, 2)] * 2",
    **{"encoder_layers": 1, "encoder_embed_dim": 16, "encoder_ffn_embed_dim": 16, "encoder_attention_heads": 2},
    **{"conv_pos": 4, "conv_pos_groups": 2, "final_dim": 16, "n_tasks": 2},
}
TRANSFORMER = {
    **{"input_dim": -1, "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8},
    **{"hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    **{"initializer_range": 0.02, "layer_norm_eps": 1e-12, "share_layer": False, "pre_layer_norm": False},
}
KALDI = {"feat_type": "fbank", "fbank": {"num_mel_bins": 8}, "spectrogram": {}, "mfcc": {}}
TOUCH = "__import__('pathlib').Path('marker').touch()"


class Touch:
    """Makes a folder when it is unpickled unsafely."""

    def __reduce__(self):
        return os.mkdir, ("marker",)


def distiller() -> dict:
    """A checkpoint as S3PRL's pretraining of DistilHuBERT writes it, with an optimizer that holds its schedule."""
    from s3prl.optimizers import get_optimizer
    from s3prl.upstream.distiller.model import DistillerConfig, DistillerModel

    model = DistillerModel(DistillerConfig(DISTILLER))
    optimizer = get_optimizer([model], 10, {"name": "BertAdam_with_schedule"})
    args = argparse.Namespace(upstream="distiller", seed=1)
    config = {"distiller": DISTILLER, "task": {"sequence_length": 0}}
    states = {"Optimizer": optimizer.state_dict(), "Step": 1, "Args": args, "Config": config}
    return {**states, "Distiller": model.state_dict()}


def mockingjay() -> dict:
    from s3prl.upstream.mockingjay.model import TransformerConfig, TransformerModel

    model = TransformerModel(TransformerConfig(TRANSFORMER), 8)
    config = {
        "transformer": TRANSFORMER,
        "task": {"sequence_length": 0},
        "audio": {"kaldi": KALDI, "delta": {"order": 0}, "cmvn": {"use_cmvn": True}},
    }
    return {"Config": config, "Transformer": model.state_dict(), "Args": argparse.Namespace(seed=1)}


GENUINE = {"distiller_local": distiller, "mockingjay_local": mockingjay}


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """A function (states) -> path; what is to be made when it is run would lie in the working directory."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")

    def save(states, **options) -> str:
        torch.save(states, tmp_path / "theirs.ckpt", **options)
        return str(tmp_path / "theirs.ckpt")

    return save


def run_upstream(name: str, ckpt: str, corpora, *options) -> int:
    data = ["--voxceleb1", str(corpora / "VoxCeleb1"), "--prepared", str(corpora / "prepared"), "-c", SID]
    steps = ["-o", "config.runner.total_steps=1,,config.runner.eval_step=2,,config.runner.save_step=1"]
    return cli.main(
        ["run_downstream", "-m", "train", "-d", "sid", "-u", name, "-k", ckpt, "-p", "exp", *data, *steps, *options]
    )


@pytest.mark.parametrize("name", GENUINE)
def test_genuine_checkpoints_still_load(name, saved, make_wave):
    """Also those that hold the schedule of S3PRL's optimizer, under its present and its former name."""
    states = GENUINE[name]()
    for path in (saved(states), as_before_the_package(saved(states))):
        assert UpstreamHidden(name, path, 0, "cpu")(make_wave(0.5)).shape[0] == 24


def as_before_the_package(path: str) -> str:
    """The checkpoint in the older format, whose schedule is of a module ``optimizers``."""
    old = pathlib.Path(path).with_name("old.ckpt")
    torch.save(torch.load(path, weights_only=False), old, _use_new_zipfile_serialization=False)
    data = old.read_bytes()
    old.write_bytes(data.replace(b"cs3prl.optimizers\n", b"coptimizers\n"))
    return str(old)


@pytest.mark.parametrize("name", GENUINE)
@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_checkpoints_are_refused(name, zipped, saved, corpora, capfd):
    """-u and guidance: one sentence that names the file, what it asks for, and the cure; nothing is run."""
    ckpt = saved({**GENUINE[name](), "Scheduler": Touch()}, _use_new_zipfile_serialization=zipped)
    assert run_upstream(name, ckpt, corpora) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"s3prl-ofa run_downstream: error: {ckpt}: refused, because it asks to run or build ")
    assert "posix.mkdir" in said and "save it again with only weights and plain values" in said
    assert "weights_only" not in said
    with pytest.raises(
        UsageError, match=rf"--upstream {name} cannot be loaded \({ckpt}: refused, .* posix.mkdir"
    ) as caught:
        UpstreamHidden(name, ckpt, 0, "cpu")
    assert "weights_only" not in str(caught.value)
    assert not list(pathlib.Path().rglob("marker"))


@pytest.mark.slow
def test_hostile_baselines_of_a_sweep(saved, corpora, tmp_path, capsys):
    """The point fails, and its report says why."""
    baseline = {"upstream": "distiller_local", "checkpoint": saved({**distiller(), "Scheduler": Touch()})}
    grid = {
        "baselines": [baseline],
        "tasks": {"sid": {"steps": 1}},
        "mini": True,
        "data": {"voxceleb1": str(corpora / "VoxCeleb1"), "prepared": str(corpora / "prepared")},
        "executor": {"kind": "local", "cpus": 1},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    assert cli.main(["sweep", str(tmp_path / "grid.yaml"), "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert re.search("sid_distiller-local_seed1-[0-9a-f]{8} failed: status 2", printed)
    assert "asks to run or build posix.mkdir" in printed
    assert not list(tmp_path.rglob("marker"))


@pytest.mark.parametrize("variable", ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_WEIGHTS_ONLY_LOAD"])
def test_what_the_environment_asks_of_torch(variable, saved, monkeypatch):
    """Old advice for S3PRL on torch 2.6 makes torch take whole pickles; here it does not."""
    monkeypatch.setenv(variable, "1")
    load = torch.load
    with plain_names.reading_safely(), pytest.raises(CheckpointError, match=r"theirs.ckpt: refused"):
        torch.load(saved({"x": Touch()}), map_location="cpu")
    assert torch.load is load and builtins.eval.__name__ == "eval" and not list(pathlib.Path().iterdir())


CODE_IN_CONFIG = {
    "distiller_local": ("distiller", "extractor_conv_feature_layers", f"[(8, 10, 5)] + [{TOUCH} or (8, 3, 2)]"),
    "mockingjay_local": ("audio", "kaldi", {**KALDI, "feat_type": f"fbank if {TOUCH} else fbank"}),
}


@pytest.mark.parametrize("name", CODE_IN_CONFIG)
def test_strings_of_a_checkpoint_are_not_run(name, saved, corpora, capfd):
    """Plain values are not enough, because S3PRL evaluates some of their strings."""
    section, key, hostile = CODE_IN_CONFIG[name]
    states = GENUINE[name]()
    states["Config"] = {**states["Config"], section: {**states["Config"][section], key: hostile}}
    assert run_upstream(name, saved(states), corpora) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert "is not run: expected a value or a plain name in a config or checkpoint" in said
    assert not list(pathlib.Path().rglob("marker"))


SOURCE = """
import pickle

class Own: pass

def run(source):
    layers = [1, 2]
    return eval(source)

def read(path):
    with open(path, "rb") as file:
        return pickle.load(file)
"""


def module_of(name: str, **names):
    """A module of this name that evaluates and unpickles as S3PRL's do."""
    made = types.ModuleType(name)
    vars(made).update(names)
    exec(SOURCE, vars(made))
    return made


VALUES = {
    "[(512, 10, 5)] + [(512, 3, 2)] * 2": [(512, 10, 5), (512, 3, 2), (512, 3, 2)],
    "(0.9, 0.98)": (0.9, 0.98),
    "-math.inf": -float("inf"),
    "layers": [1, 2],
    "layers[1]": 2,
    "{'a': [1]}": {"a": [1]},
    " None ": None,
}


@pytest.mark.parametrize("source", VALUES)
def test_values_and_names_are_evaluated(source):
    run = module_of("s3prl.some.expert", math=importlib.import_module("math")).run
    with safe_loading.no_code_from_files():
        found = run(source)
    assert (
        [tuple(item) if isinstance(item, list) else item for item in found] == VALUES[source]
        if isinstance(found, list)
        else found == VALUES[source]
    )


@pytest.mark.parametrize(
    "source",
    ["open('x', 'w')", "open", "os", "os.system", "partial", "[os.mkdir('x')]", "lambda: 0", "9**9", "(" * 999],
)
@pytest.mark.parametrize("module", ["s3prl.some.expert", "fairseq.optim.adam"])
def test_nothing_else_is(source, module, saved):
    """Nor are functions of other packages, because S3PRL and fairseq call what they have evaluated."""
    run = module_of(module, os=os, partial=functools.partial).run
    with safe_loading.no_code_from_files():
        assert run("Own").__name__ == "Own"
        with pytest.raises(UsageError, match="is not run"):
            run(source)
    assert not list(pathlib.Path().iterdir())


def test_others_evaluate_as_before():
    """Other libraries keep eval, with the names in their scope."""
    with safe_loading.no_code_from_files():
        assert module_of("another.library").run("sum(layers)") == 3
        assert eval("a + 1", {"a": 1}) == 2


def test_everything_that_upstreams_evaluate_passes_the_guard():
    """Which strings those are: names of S3PRL's own, and what test_strings_of_a_checkpoint_are_not_run is about."""
    root = pathlib.Path(importlib.import_module("s3prl").__file__).parent / "upstream"
    found = set()
    for path in root.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec"):
                found.add(ast.unparse(node))
    assert found == {
        "eval(module_name)",
        "eval(hook.module_path)",
        "eval(x)",
        "eval(cfg.conv_feature_layers)",
        "eval(self.cfg.conv_feature_layers)",
        "eval(cfg.conv_aggregator_layers)",
        "eval(config.extractor_conv_feature_layers)",
        "eval(cfg.override_encoder_layers)",
        "eval(f'torchaudio.compliance.kaldi.{feat_type}')",
    }


HOSTILE_FILES = {
    "zip": lambda path: torch.save({"Args": Touch()}, path),
    "older format": lambda path: torch.save({"Args": Touch()}, path, _use_new_zipfile_serialization=False),
    "pickle": lambda path: pathlib.Path(path).write_bytes(pickle.dumps({"Args": Touch()}, protocol=2)),
    "class": lambda path: torch.save({"Args": argparse.Namespace(path=pathlib.PurePosixPath("x"))}, path),
    "program": lambda path: torch.jit.script(torch.nn.Identity()).save(path),
}


@pytest.mark.parametrize("kind", HOSTILE_FILES)
def test_hostile_experiments_are_named(kind, saved, corpora, capfd, tmp_path):
    """The message for -e, -a and -i says what is wrong with the file and does not repeat torch's advice to run it."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    HOSTILE_FILES[kind](folder / "states-2.ckpt")
    evaluate = ["run_downstream", "-m", "evaluate"]
    data = ["--voxceleb1", str(corpora / "VoxCeleb1"), "--prepared", str(corpora / "prepared"), "-c", SID, "-d", "sid"]
    init = ["-i", str(folder / "states-2.ckpt"), "-p", str(tmp_path / "exp"), *data]
    ours, other = ["-u", "ofa_wav2vec2", "-k", CKPT], ["-u", "fbank"]
    for options in (["-e", str(folder)], ["-a", "-p", str(folder)], [*init, *ours], [*init, *other]):
        assert cli.main([*evaluate, *options]) == 2
        said = capfd.readouterr().err.strip().splitlines()[-1]
        assert f"error: {folder}/states-2.ckpt: refused, because it " in said
        assert any(f" {name}" in said for name in ("posix.mkdir", "pathlib.", "is a TorchScript archive"))
        assert "weights_only" not in said and "save it again with only weights and plain values" in said
    assert not list(pathlib.Path().iterdir())


def test_no_unsafe_loading_in_the_sources():
    """Nothing in the package loads a full pickle or evaluates a string from a file."""
    for source in (ROOT / "s3prl_ofa").rglob("*.py"):
        for node in ast.walk(ast.parse(source.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load")
            if name == "torch.load":
                assert "weights_only=True" in ast.unparse(node), source
            if name.endswith("add_safe_globals"):
                assert ast.unparse(node.args[0]) in ("[argparse.Namespace]", "[Dictionary]"), source
            if name == "np.load":
                assert "allow_pickle" not in ast.unparse(node), source


def test_pickles_of_s3prl_hold_values(saved):
    """Lists of files that S3PRL pickles are read; for other callers pickle is unchanged."""
    path = pathlib.Path(saved({})).with_name("cache.pkl")
    with safe_loading.no_code_from_files():
        for value in ({"id1": ["a.wav", 1.5]}, pathlib.PurePosixPath("x")):
            path.write_bytes(pickle.dumps(value))
            assert module_of("another.library").read(path) == value
            if isinstance(value, dict):
                assert module_of("s3prl.some.dataset").read(path) == value
        path.write_bytes(pickle.dumps(Touch()))
        with pytest.raises(CheckpointError, match="cache.pkl: refused, because it asks to run or build posix.mkdir"):
            module_of("s3prl.some.dataset").read(path)
    assert not list(pathlib.Path().iterdir())


def test_a_buffer_has_no_name():
    """The message of what is not read from a file."""
    buffer = io.BytesIO()
    torch.save(Touch(), buffer)
    buffer.seek(0)
    with safe_loading.no_code_from_files(), pytest.raises(CheckpointError, match="^what is loaded: refused"):
        torch.load(buffer)
