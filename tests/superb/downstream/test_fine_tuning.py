"""What -f trains of the upstream, how fast, and from when on."""

import pathlib

import pytest
import torch
from paths import CKPT

from s3prl_ofa import cli, load
from s3prl_ofa.model import products


@pytest.fixture
def train(corpora, tmp_path, monkeypatch):
    """A function (*options) that trains sid with its upstream; four steps, each with a checkpoint."""
    monkeypatch.chdir(tmp_path)
    every = {"total_steps": 4, "eval_step": 4, "save_step": 1, "log_step": 4, "max_keep": 9}
    changes = [f"config.runner.{name}={value}" for name, value in every.items()]

    def call(*options, changed=()):
        common = ["-m", "train", "-a", "-d", "sid", "-p", "exp", "-u", "ofa_wav2vec2", "-k", CKPT, "--lambd", "0.5"]
        common += ["--voxceleb1", str(corpora / "VoxCeleb1"), "--prepared", str(corpora / "prepared"), "--mini"]
        return cli.main(["run_downstream", *common, "-o", ",,".join([*changes, *changed]), *options])

    return call


def stored(step):
    return torch.load(f"exp/states-{step}.ckpt", weights_only=True)


def changed(step, base=None):
    """The weights of the upstream that differ from those before training, or at another step."""
    before = load(CKPT).state_dict() if base is None else stored(base)["Upstream"]
    after = stored(step)["Upstream"]
    return {
        name.removeprefix("model.")
        for name, weight in after.items()
        if not torch.equal(weight, before[name if base is not None else name.removeprefix("model.")])
    }


def test_frozen_layers(train):
    """The front end, the compressor and the first layers stay as they are; the rest is trained."""
    assert train("-f", "--freeze-layers", "1") == 0
    assert changed(4) and all(name.startswith("encoder.layers.1.") for name in changed(4))
    assert stored(4)["Config"]["fine_tuning"] == {"freeze_layers": 1}


def test_unfrozen_after_some_updates(train, monkeypatch):
    """Until then no weight of the upstream changes; a resumed training counts the updates that are done."""
    assert train("-f", "--unfreeze-after", "2") == 0
    assert not changed(2) and "front_end.weights.0" in changed(3)
    before, whole = stored(1), stored(4)
    for step in (2, 3, 4):
        pathlib.Path(f"exp/states-{step}.ckpt").unlink()
    assert train("-f") == 0  # resumes, with what the experiment has
    assert not changed(2) and before["Step"] == 1
    assert all(torch.equal(weight, whole["Upstream"][name]) for name, weight in stored(4)["Upstream"].items())


@pytest.mark.slow
def test_learning_rate_of_the_upstream(train):
    """The upstream alone has it, a schedule apart, and keeps it when training resumes."""
    assert train("-f", "--upstream-lr", "1e-5") == 0
    whole = stored(4)
    rates = [group["lr"] for group in whole["Optimizer"]["param_groups"]]
    assert rates[-1] == 1e-5 and all(rate > 1e-5 for rate in rates[:-1])
    assert len(whole["Optimizer"]["param_groups"][-1]["params"]) == len(list(load(CKPT).parameters()))
    step = max((stored(4)["Upstream"][name] - stored(3)["Upstream"][name]).abs().max() for name in whole["Upstream"])
    assert 0 < float(step) < 1.1e-5 * 1.5
    for step in (2, 3, 4):
        pathlib.Path(f"exp/states-{step}.ckpt").unlink()
    assert train("-f") == 0
    assert all(torch.equal(weight, whole["Upstream"][name]) for name, weight in stored(4)["Upstream"].items())


@pytest.mark.skipif(not products.HAS_PRODUCTS, reason="this torch has no products with packed weights")
def test_weights_of_a_frozen_upstream_are_packed_once(train, monkeypatch):
    """Not for every batch, in training, in evaluation, and in the evaluation of an upstream that was trained."""
    packed, reorder, made = products.packed, torch.ops.mkldnn._reorder_linear_weight, []

    def counted(weight):
        made.append(weight)  # and so keeps its place in memory
        return reorder(weight)

    def packed_once():
        return len({weight.data_ptr() for weight in made}) == len(made) > 0

    def counting(weight, pack):  # the front end's weights are packed in another shape, each time
        return packed(weight, counted if isinstance(weight, torch.nn.Parameter) else pack)

    monkeypatch.setattr(products, "packed", counting)
    assert train() == 0 and packed_once()
    pathlib.Path("exp").rename("frozen")
    assert train("-f") == 0
    made.clear()
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", "exp"]) == 0 and packed_once()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--upstream-lr", "1e-5"), "--upstream-lr is for training the upstream: give -f, too"),
        (("-f", "--upstream-lr", "0"), "--upstream-lr must be a number above 0, found 0.0"),
        (("-f", "--freeze-layers", "3"), "--freeze-layers must be at most 2, found 3"),
        (("-f", "--unfreeze-after", "-1"), "--unfreeze-after must be a whole number from 0, found -1"),
        (("-u", "fbank", "-f", "--freeze-layers", "1"), "--lambd, --freeze-layers needs the upstream ofa_wav2vec2"),
    ],
)
def test_bad_settings(train, capsys, options, message):
    assert train(*options) == 2
    assert message in capsys.readouterr().err
