"""S3PRL knows the upstream once s3prl_ofa.superb is imported, and keeps the lengths of its frames."""

import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from paths import CKPT, GOLDEN
from torch.nn.utils.rnn import pad_sequence

import s3prl_ofa.superb  # noqa: F401  (registers)
from s3prl_ofa.errors import CheckpointError
from s3prl_ofa.superb.compat import shims

ENTRIES = {"ofa_wav2vec2", "ofa_wav2vec2_local", "ofa_wav2vec2_url", "ofa_wav2vec2_custom"}


@pytest.fixture(scope="module")
def waves():
    names = ("5s", "1s", "2.37s")
    return [torch.from_numpy(np.load(GOLDEN / f"ref_tiny_wav_{name}.npy")).float().reshape(-1) for name in names]


@pytest.fixture(scope="module")
def padded(waves):
    return pad_sequence(waves, batch_first=True), torch.tensor([len(wave) for wave in waves])


def test_the_hub_lists_the_entries():
    """s3prl.hub has the entries and lists them; -u of run_downstream takes its choices from there."""
    hub = importlib.import_module("s3prl.hub")
    assert set(hub.options()) >= ENTRIES
    assert "ofa_wav2vec2" in hub.options(only_registered_ckpt=True)
    upstream = hub.ofa_wav2vec2(ckpt=CKPT, model_config="{lambd: 0.5}", refresh=False)
    assert upstream.get_downsample_rates("hidden_states") == 320


@pytest.mark.slow
@pytest.mark.parametrize("first", ["s3prl.hub, s3prl.nn, s3prl.downstream.runner", "s3prl_ofa.superb"])
def test_the_order_of_imports_does_not_matter(first):
    """S3PRL imported before or after s3prl_ofa.superb, or once more: the same registration."""
    code = f"""
import runpy
runpy.run_path({shims.__file__!r})["apply_shims"]()  # as a file, so that nothing is registered
import {first}
import s3prl_ofa.superb, s3prl.hub, s3prl.nn.upstream, s3prl.downstream.runner, s3prl.downstream.asr.expert
from s3prl_ofa.superb import registration
registration.register()
assert s3prl.hub.ofa_wav2vec2 is registration.ofa_wav2vec2
assert s3prl.downstream.asr.expert.SequenceDataset.__name__ == "AsrDataset"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_upstreams_keep_s3prls_classes():
    """Registered, nothing of S3PRL's classes, PyTorch or Python is another for another upstream. Once one of our
    upstreams is built, S3PRL's own runner and S3PRLUpstream read its lengths, and are not wrapped twice."""
    code = f"""
import builtins, sys, torch
before = builtins.isinstance, torch.nn.LSTM
import s3prl_ofa.superb
from s3prl import hub, nn
from s3prl.downstream import runner
from s3prl.downstream.asr import model
from s3prl.upstream import interfaces
def names():
    return runner.Featurizer, runner.Runner, nn.S3PRLUpstream.forward, model.nn, builtins.isinstance, torch.nn.LSTM
assert names() == (interfaces.Featurizer, runner.Runner, nn.S3PRLUpstream.forward, torch.nn, *before)
assert all(each.__module__.startswith("s3prl.") for each in names()[:3])
at_first = names()
upstream = nn.S3PRLUpstream("fbank")
upstream(torch.randn(2, 16000), torch.tensor([16000, 8000]))
assert type(runner.Featurizer(upstream.upstream, upstream_device="cpu")) is interfaces.Featurizer
assert names() == at_first
hub.ofa_wav2vec2({CKPT!r}), hub.ofa_wav2vec2({CKPT!r})
assert runner.Featurizer.__mro__[1] is interfaces.Featurizer
assert nn.S3PRLUpstream.forward.__wrapped__ is at_first[2]
assert (names()[1], *names()[3:]) == (at_first[1], *at_first[3:])
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_s3prl_imported_after_an_upstream_was_built():
    """Its runner and S3PRLUpstream read the lengths of upstreams that were there before them."""
    code = f"""
from s3prl_ofa.superb.registration import ofa_wav2vec2
ofa_wav2vec2({CKPT!r})
from s3prl.downstream import runner
from s3prl.nn.upstream import S3PRLUpstream
assert runner.Featurizer.__name__ == "LengthAwareFeaturizer"
assert hasattr(S3PRLUpstream.forward, "keeps_native_lengths")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_checkpoint_is_downloaded_once_and_again_on_refresh(served, tmp_path, monkeypatch):
    """_url, _custom and a URL for ofa_wav2vec2 share a cache, and refresh is honoured."""
    address, requests = served
    hub = importlib.import_module("s3prl.hub")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    url = f"{address}/ref_tiny.pt"
    hub.ofa_wav2vec2_url(url, lambd=0.5)
    hub.ofa_wav2vec2(ckpt=url, lambd=0.5)
    assert len(requests) == 1
    hub.ofa_wav2vec2_custom(url, refresh=True)
    assert len(requests) == 2
    page = f"{address}/downstream_scores.json"
    with pytest.raises(CheckpointError, match=f"what was downloaded from {page} is not a checkpoint"):
        hub.ofa_wav2vec2(page)


def featurizer_of(upstream, **options):
    interfaces = importlib.import_module("s3prl.downstream.runner")
    return interfaces.Featurizer(upstream=upstream, upstream_device="cpu", **options)


@torch.no_grad()
def test_featurizer_cuts_at_the_true_lengths(waves):
    """Native frames reach the downstream model with the lengths that the upstream gives, weighted over all layers."""
    upstream = importlib.import_module("s3prl.hub").ofa_wav2vec2(CKPT, lambd=1.0, output_frames="native")
    featurizer = featurizer_of(upstream)
    output = upstream(waves)
    features = featurizer(waves, output)
    assert [len(feature) for feature in features] == output["hidden_states_len"].tolist()
    mean = torch.stack(output["hidden_states"]).mean(0)
    for feature, row, length in zip(features, mean, output["hidden_states_len"], strict=True):
        torch.testing.assert_close(feature, row[:length])
    assert featurizer.output_dim == 32 and featurizer.downsample_rate == 320


@torch.no_grad()
@pytest.mark.parametrize(
    ("options", "pick"),
    [
        ({"feature_selection": "last_hidden_state"}, lambda output: output["last_hidden_state"]),
        ({"feature_selection": "hidden_state_1"}, lambda output: output["hidden_states"][1]),
        ({"layer_selection": 0}, lambda output: output["hidden_states"][0]),
        (
            {"normalize": True},
            lambda output: torch.stack([torch.layer_norm(h, h.shape[-1:]) for h in output["hidden_states"]]).mean(0),
        ),
    ],
)
def test_featurizer_keeps_the_options_of_the_original(waves, options, pick):
    """-s, -l and --upstream_feature_normalize do what they do in S3PRL."""
    upstream = importlib.import_module("s3prl.hub").ofa_wav2vec2(CKPT, lambd=0.5, output_frames="native")
    output = upstream(waves)
    features = featurizer_of(upstream, **options)(waves, output)
    for feature, row, length in zip(features, pick(output), output["hidden_states_len"], strict=True):
        torch.testing.assert_close(feature, row[:length])


@torch.no_grad()
def test_featurizer_is_the_original_for_other_upstreams(waves):
    """An upstream that gives no lengths gets S3PRL's own, with its check of the constant rate."""
    interfaces = importlib.import_module("s3prl.upstream.interfaces")

    class Constant(torch.nn.Module):
        def forward(self, waves):
            return {"hidden_states": [torch.ones(len(waves), max(map(len, waves)) // 160, 4)]}

        def get_downsample_rates(self, key):
            return 160

    upstream = Constant()
    length_aware = importlib.import_module("s3prl_ofa.superb.upstream.featurizer").LengthAwareFeaturizer
    ours, original = (kind(upstream, upstream_device="cpu") for kind in (length_aware, interfaces.Featurizer))
    for one, other in zip(ours(waves, upstream(waves)), original(waves, upstream(waves)), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(AssertionError):
        ours(waves, {"hidden_states": [torch.ones(3, 5, 4)]})


def nn_upstream(**options):
    nn = importlib.import_module("s3prl.nn")
    upstream = nn.S3PRLUpstream("ofa_wav2vec2", CKPT, extra_conf=options).eval()
    return upstream, nn.Featurizer(upstream)


@torch.no_grad()
def test_s3prl_upstream_keeps_native_lengths(waves, padded):
    """S3PRLUpstream neither stretches nor cuts native frames, and s3prl.nn.Featurizer takes them."""
    upstream, featurizer = nn_upstream(frame_period_ms=50.0, output_frames="native")
    states, lengths = upstream(*padded)
    expected = [round(len(wave) / 800) for wave in waves]
    assert [length.tolist() for length in lengths] == [expected] * upstream.num_layers
    direct = upstream.upstream(waves)["hidden_states"]
    assert all(torch.equal(one, other) for one, other in zip(states, direct, strict=True))
    features, feature_lengths = featurizer(states, lengths)
    assert features.shape == (3, max(expected), 32) and feature_lengths.tolist() == expected
    again, _ = upstream(padded[0].unsqueeze(-1), padded[1])
    assert torch.equal(again[0], states[0])


@torch.no_grad()
def test_s3prl_upstream_is_the_original_for_upsampled_frames(waves, padded):
    """Upsampled frames keep S3PRL's lengths, rounded up, and what it appends is a last frame in every row."""
    upstream, featurizer = nn_upstream(lambd=0.8)
    states, lengths = upstream(*padded)
    assert lengths[0].tolist() == [-(-len(wave) // 320) for wave in waves]
    assert featurizer(states, lengths)[0].shape == (3, max(lengths[0]), 32)
    for row, length in enumerate(lengths[0]):
        assert torch.equal(states[-1][row, length - 1], states[-1][row, length - 2])


@torch.no_grad()
def test_s3prl_upstream_pads_short_waves_and_normalizes():
    """Waves below the receptive field come through, as in S3PRL, with at least one frame; normalize works."""
    upstream, _ = nn_upstream(lambd=1.0, output_frames="native")
    states, lengths = upstream(torch.randn(2, 32000), torch.tensor([100, 32000]))
    assert lengths[0][0] >= 1 and lengths[0][1] > lengths[0][0]
    upstream.normalize = True
    normal, _ = upstream(torch.randn(1, 32000), torch.tensor([32000]))
    assert normal[0].mean(-1).abs().max() < 1e-5


@pytest.mark.parametrize("recipe", ["SuperbASR", "SuperbPR", "SuperbSID"])
def test_s3prl_main_recipes_see_the_name(recipe, padded):
    """The newer s3prl-main recipes build the upstream by its name, with options by extra_conf."""
    for module in ("tensorboard", "sed_eval"):
        pytest.importorskip(module, reason="S3PRL's recipes import it")
    problem = getattr(importlib.import_module("s3prl.problem"), recipe)()
    conf = {"name": "ofa_wav2vec2", "path_or_url": CKPT, "extra_conf": {"lambd": 0.5, "output_frames": "native"}}
    upstream = problem.build_upstream(conf)
    featurizer = problem.build_featurizer({}, upstream)
    with torch.no_grad():
        features, lengths = featurizer(*upstream.eval()(*padded))
    assert features.shape[1] == max(lengths) < 200
