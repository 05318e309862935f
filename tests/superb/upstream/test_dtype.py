"""The dtype of the upstream: what runs in it, what a task gets, and where it is refused."""

import json
import pathlib

import pytest
import torch
from paths import CKPT

from s3prl_ofa import cli, load
from s3prl_ofa.device import fastest_dtype
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.upstream.expert import UpstreamExpert
from s3prl_ofa.superb.upstream.rate_options import RateOptions, read_model_config

OPTIONS = {"lambd": 0.5, "output_frames": "native"}


@torch.no_grad()
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "auto"])
def test_features_are_the_models_in_float32(dtype, waves):
    """The model runs in the dtype, with the frames that it then has; hidden states come as float32, before they are
    pooled or repeated too."""
    out = load(CKPT, dtype=dtype).extract(waves, lambd=0.5)
    expert = UpstreamExpert(CKPT, dtype=dtype, **OPTIONS)
    found = expert(waves)
    assert found["hidden_states_len"].tolist() == out.lengths.tolist()
    for state, expected in zip(found["hidden_states"], out.hidden_states, strict=True):
        assert state.dtype == torch.float32 and torch.equal(state, expected.float())
    pooled = UpstreamExpert(CKPT, dtype=dtype, pool=2, output_frames="native")(waves)["last_hidden_state"]
    first = load(CKPT, dtype=dtype).extract(waves).hidden_states[-1][0, :2].float().mean(0)
    torch.testing.assert_close(pooled[0, 0], first, atol=1e-6, rtol=1e-6)
    assert all(
        weight.requires_grad == (expert.model.feature_norm.weight.dtype == torch.float32 and dtype == "float32")
        for weight in expert.parameters()
    )


@torch.no_grad()
def test_the_default_is_float32(waves):
    """Without the option nothing is changed: the same features, and nothing new in what an experiment stores."""
    plain, asked = UpstreamExpert(CKPT, **OPTIONS), UpstreamExpert(CKPT, dtype="float32", **OPTIONS)
    for state, expected in zip(plain(waves)["hidden_states"], asked(waves)["hidden_states"], strict=True):
        assert torch.equal(state, expected)
    assert plain.options.to_yaml() == asked.options.to_yaml() == "{lambd: 0.5, output_frames: native}"


def test_auto_is_that_of_the_device(monkeypatch):
    """What is stored is what it stood for; 8 bits are for the CPU."""
    auto, fastest = RateOptions(dtype="auto"), str(fastest_dtype(torch.device("cpu"))).removeprefix("torch.")
    assert auto.on_device("cpu") == RateOptions(dtype=fastest)
    assert RateOptions(dtype="int8").on_device("cpu") == RateOptions(dtype="int8")
    monkeypatch.setattr("s3prl_ofa.superb.upstream.rate_options.resolve_device", torch.device)
    with pytest.raises(UsageError, match="--dtype int8 is for the CPU, found --device cuda:1; use bfloat16 or float16"):
        RateOptions(dtype="int8").on_device("cuda:1")


@pytest.fixture
def call(corpora, tmp_path, monkeypatch):
    """A function (task, *options) that trains two steps; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    data = ["--voxceleb1", corpora / "VoxCeleb1", "--librispeech", corpora / "LibriSpeech"]
    data += ["--prepared", corpora / "prepared", "--mini", "-p", "exp"]
    steps = ",,".join(f"config.runner.{name}=2" for name in ("total_steps", "eval_step", "save_step"))

    def train(task, *options, upstream=("ofa_wav2vec2", "-k", CKPT)):
        command = ["-m", "train", "-d", task, "-u", *upstream, *data, "-o", steps, *options]
        return cli.main(["run_downstream", *map(str, command)])

    return train


@pytest.mark.parametrize(
    ("options", "upstream", "sentence"),
    [
        (["-f"], None, "an upstream that is trained (-f) runs in float32, found dtype int8"),
        ([], ("mfcc",), "--dtype needs the upstream ofa_wav2vec2, found mfcc"),
    ],
)
def test_refused(options, upstream, sentence, call, capfd):
    """With fine-tuning and with other upstreams, before anything is written."""
    assert call("sid", "--dtype", "int8", *options, **({} if upstream is None else {"upstream": upstream})) == 2
    assert sentence in capfd.readouterr().err.strip().splitlines()[-1]
    assert not pathlib.Path("exp").exists()


def evaluated(*options) -> dict:
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", "exp", *options]) == 0
    return json.loads(pathlib.Path("exp", "measured_test.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("task", ["pr", "sid"])
def test_in_s3prl(task, call, caplog, tmp_path):
    """A training in 8 bits, resumed and evaluated in them, with a cache that keeps them apart from others; another
    dtype can be asked for."""
    cache = ["--cache-gb", "0.1", "--feature-cache", "features"]
    assert call(task, "--dtype", "int8", *cache) == 0
    stored = torch.load("exp/states-2.ckpt", weights_only=True)["Args"].upstream_model_config
    assert RateOptions.layered(read_model_config(stored)).dtype == "int8"
    assert evaluated(*cache)["options"]["dtype"] == "int8"
    assert evaluated("--dtype", "float32", *cache)["options"]["dtype"] == "float32"
    assert "trained at lambd 0, int8, native frames; it now runs at lambd 0, native frames" in caplog.text
    keys = [json.loads(path.read_text()) for path in tmp_path.glob("features/*/key.json")]
    dtypes = {key["dtype"] for key in keys if "weights" in key}  # not that of decoded audio
    assert len(dtypes) == 2 and "torch.float32" in dtypes
    assert cli.main(["run_downstream", "-m", "train", "-e", "exp", "-o", "config.runner.total_steps=4"]) == 0
