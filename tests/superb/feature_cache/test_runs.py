"""The feature cache in S3PRL's training and evaluation: the same scores, measured time, misuse."""

import dataclasses
import json
import pathlib
import time
import types

import pytest
import torch
from cached import CLOSE, counted, on_disk
from paths import CKPT
from torch import nn

from s3prl_ofa import cli
from s3prl_ofa.model.frontend import FrontEnd
from s3prl_ofa.superb.downstream.metrics import Meter, measured_path
from s3prl_ofa.superb.feature_cache.cache import FeatureCache
from s3prl_ofa.superb.upstream.expert import UpstreamExpert
from s3prl_ofa.superb.upstream.rate_options import RateOptions


class Features(nn.Module):
    """A featurizer and downstream model for a meter to watch."""

    def forward(self, found):
        return list(found["hidden_states"][-1]) if isinstance(found, dict) else found

    def log_records(self, split, **kwargs):
        """What S3PRL calls after an evaluation."""


@torch.no_grad()
def evaluated(expert, folder, batches) -> dict:
    """What a meter measures of an evaluation of these batches."""
    args = types.SimpleNamespace(device="cpu", mode="evaluate", evaluate_split="test", expdir=str(folder))
    models = {"upstream": expert, "featurizer": Features(), "downstream": Features()}
    runner = types.SimpleNamespace(
        args=args, learned_rate=None, **{name: types.SimpleNamespace(model=model) for name, model in models.items()}
    )
    meter = Meter(runner, {})
    for batch in batches:
        runner.downstream.model(runner.featurizer.model(runner.upstream.model(batch)))
    meter.write()
    return json.loads(measured_path(folder, "test").read_text())


def test_the_upstream_is_measured_though_all_is_cached(alike, opened, tmp_path, ran):
    """In an evaluation whose features are all cached the first two batches and every tenth are computed, which gives a
    speed; frames and cost are those of an evaluation without a cache."""
    expert = UpstreamExpert(CKPT, lambd=0.5, output_frames="native")
    waves = alike(23)
    expert.cache = opened(model=expert.model, **expert.options.extract_rate)
    with torch.no_grad():
        expert(waves)
    expert.measured.__init__()
    ran.clear()
    found = evaluated(expert, tmp_path, [[wave] for wave in waves])
    assert len(ran) == 4
    assert found["upstream_seconds_per_second"] > 0 and found["downstream_seconds_per_second"] > 0
    plain = evaluated(UpstreamExpert(CKPT, lambd=0.5, output_frames="native"), tmp_path, [[wave] for wave in waves])
    for name in ("utterances", "batches", "audio_seconds", "frames", "frame_period_ms", "macs_per_second", "options"):
        assert found[name] == plain[name], name
    one = evaluated(expert, tmp_path, [waves])
    assert one["upstream_seconds_per_second"] > 0


@pytest.mark.parametrize("kept", [False, True])
def test_the_time_of_the_cache_is_not_the_models(kept, alike, opened, tmp_path, monkeypatch):
    """The time to find and store entries does not count as the upstream's, in a new folder and in a full one."""
    expert, waves = UpstreamExpert(CKPT, output_frames="native"), alike(3)
    expert.cache = opened(model=expert.model, **expert.options.extract_rate)
    if kept:
        with torch.no_grad():
            expert(waves)

    def slowly(method):
        return lambda *args: (time.sleep(0.6), method(*args))[1]

    for name in ("path", "store"):
        monkeypatch.setattr(FeatureCache, name, slowly(getattr(FeatureCache, name)))
    found = evaluated(expert, tmp_path, [[wave] for wave in waves])
    assert 0 < found["upstream_seconds_per_second"] * 0.3 < 0.6


STEPS = {"total_steps": 6, "eval_step": 3, "save_step": 6, "log_step": 2}
DATARC = "config.downstream_expert.datarc"


@pytest.fixture
def call(corpora, tmp_path, monkeypatch):
    """A function (folder, *options, lr, upstream) that trains SID, three epochs; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = ["--voxceleb1", str(corpora / "VoxCeleb1"), "--prepared", str(corpora / "prepared"), "--mini"]

    def train(folder, *options, lr=1e-2, upstream=("ofa_wav2vec2", "-k", CKPT)):
        changes = [*(f"config.runner.{name}={value}" for name, value in STEPS.items()), f"config.optimizer.lr={lr}"]
        changes += [f"{DATARC}.train_batch_size=2", f"{DATARC}.max_timestep=None"]
        task = ["-m", "train", "-d", "sid", "-p", str(folder), *data, "-o", ",,".join(changes), "-u", *upstream]
        return cli.main(["run_downstream", *task, *options])

    return train


def evaluate(folder, *options) -> dict:
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", str(folder), *options]) == 0
    return json.loads(pathlib.Path(folder, "measured_test.json").read_text())


def stored(folder) -> dict:
    return torch.load(pathlib.Path(folder, "states-6.ckpt"), map_location="cpu", weights_only=True)


def test_training_is_the_same_with_a_cache(call, tmp_path, ran, decoded):
    """Training and evaluation end with the weights and scores of a run without a cache, the weighted sum having been
    trained; each utterance is decoded and goes through the upstream once, and for another learning rate none does."""
    probe = [16_000]  # S3PRL runs a second of noise to learn the upstream's width
    assert call("plain", "--lambd", "0.5") == 0
    ran.clear()
    cache = ["--cache-gb", "0.1", "--feature-cache", "features"]
    assert call("cached", "--lambd", "0.5", *cache) == 0
    assert len(ran) == len(set(ran)) and len(ran) == 1 + 4 + 2  # noise, training, dev
    assert len(decoded) == len(set(decoded)) == 4 + 2
    plain, cached = stored("plain"), stored("cached")
    for part in ("Downstream", "Featurizer"):
        assert plain[part].keys() == cached[part].keys()
        for name, value in plain[part].items():
            torch.testing.assert_close(cached[part][name], value, **CLOSE)
    assert cached["Featurizer"]["weights"].abs().max() > 1e-3
    expected = evaluate("plain")
    for _ in range(2):
        found = evaluate("cached", *cache)
        assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
        assert found["upstream_seconds_per_second"] > 0
        assert found["frames"] == expected["frames"] and found["macs_per_second"] == expected["macs_per_second"]
    ran.clear()
    decoded.clear()
    assert call("other", "--lambd", "0.5", *cache, lr=1e-3) == 0
    assert ran == probe and not decoded
    assert not torch.equal(stored("other")["Featurizer"]["weights"], cached["Featurizer"]["weights"])
    assert not (tmp_path / "cache" / "s3prl_ofa" / "features").exists() and counted("features") == on_disk("features")
    assert call("again", "--lambd", "0.5", "--cache-gb", "0.1", "-a") == 0
    assert on_disk(tmp_path / "cache" / "s3prl_ofa" / "features") > 0


def test_a_learned_rate_with_a_cache(call, monkeypatch):
    """A learned rate ends where it does without a cache, with the same weights and scores; the front end runs on each
    utterance once, and again only where the upstream is timed."""
    convolved, forward = [], FrontEnd.forward
    monkeypatch.setattr(FrontEnd, "forward", lambda *args: (convolved.extend(map(len, args[1])), forward(*args))[1])
    rate, cache = ["--lambd", "adaptive", "--rate-weight", "1"], ["--cache-gb", "0.1", "--feature-cache", "features"]
    assert call("plain", *rate) == 0
    convolved.clear()
    assert call("cached", *rate, *cache) == 0
    assert len(convolved) == len(set(convolved)) == 1 + 4 + 2  # noise, training, dev
    plain, cached = stored("plain"), stored("cached")
    for part in ("Downstream", "Rate"):
        for name, value in plain[part].items():
            torch.testing.assert_close(cached[part][name], value, **CLOSE)
    expected = evaluate("plain")
    for _ in range(2):
        convolved.clear()
        found = evaluate("cached", *cache)
        assert len(convolved) == 1 + 2
    assert found["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    assert found["frames"] == expected["frames"] and found["upstream_seconds_per_second"] > 0


def test_random_pieces(call, caplog):
    """Training on random pieces does without a cache, and says so; on whole utterances it uses one."""
    for whole in (False, True):
        caplog.clear()
        changes = f"{DATARC}.max_timestep={None if whole else 64_000},,config.runner.total_steps=1"
        folder = f"cache{whole}"
        assert call(f"exp{whole}", "--cache-gb", "0.1", "--feature-cache", folder, "-o", changes) == 0
        assert ("does not use the feature cache" in caplog.text) is not whole
        assert bool(on_disk(folder)) is whole


MISUSE = [
    (["--feature-cache", "features"], "--feature-cache needs --cache-gb"),
    (["--cache-gb", "1", "-f"], "leave it out with -f"),
    *(
        (["--cache-gb", value], f"--cache-gb must be a number above 0, found {value}")
        for value in ("0", "-1", "nan", "inf")
    ),
    (["--cache-gb", "x"], "--cache-gb: invalid float value: 'x'"),
]


@pytest.mark.parametrize(("options", "sentence"), MISUSE, ids=str)
def test_misuse(options, sentence, call, capfd, tmp_path):
    """What cannot be cached, and an invalid size, is refused in one sentence before anything is written."""
    assert call("exp", *options) == 2
    shown = capfd.readouterr().err
    assert sentence in shown.strip().splitlines()[-1] and "Traceback" not in shown
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}  # which S3PRL makes when it is first imported


def test_misuse_with_another_upstream(call, capfd, tmp_path):
    """S3PRL's own upstreams have no cache, and asking for one is an error."""
    assert call("exp", "--cache-gb", "1", upstream=("mfcc",)) == 2
    assert "--cache-gb needs the upstream ofa_wav2vec2, found mfcc" in capfd.readouterr().err.strip().splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}  # which S3PRL makes when it is first imported


def test_a_folder_that_cannot_be_written_in_a_run(call, capfd, tmp_path):
    """--feature-cache below a file ends the run with one sentence, and the same command with another folder trains."""
    (tmp_path / "file").write_text("no folder")
    assert call("exp", "--cache-gb", "1", "--feature-cache", "file/features") == 2
    shown = capfd.readouterr().err
    assert "the feature cache file/features cannot be written" in shown.strip().splitlines()[-1]
    assert "Traceback" not in shown
    assert call("exp", "--cache-gb", "1", "--feature-cache", "features") == 0


def test_every_option_of_the_rate_reaches_the_cache():
    """The key is made of what the upstream hands to the model: no field of the rate is forgotten."""
    rate = RateOptions(lambd=0.5, boundaries="uniform", layers=1).extract_rate
    assert {"lambd", "frame_period_ms", "uniform", "layers"} == set(rate)
    assert {field.name for field in dataclasses.fields(RateOptions)} - set(rate) - {"boundaries"} == {
        "output_frames",
        "repeat",
        "pool",
        "rate_weight",
        "lambd_max",
        "lambd_start",
        "dtype",  # which the key has of the model
    }
