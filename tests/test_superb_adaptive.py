"""``lambd: adaptive``, in parts: its map, its gradient through featurizer, encoder and compressor, its options."""

import types

import pytest
import torch
import torch.distributed
from models import GOLDEN, golden_wave
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import s3prl_ofa.superb  # noqa: F401  (registers)
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb import adaptive
from s3prl_ofa.superb.adaptive import DAMPING, AdaptiveRate, with_adaptive_rate
from s3prl_ofa.superb.expert import UpstreamExpert
from s3prl_ofa.superb.rate_options import RateOptions, read_model_config

CKPT = str(GOLDEN / "ref_tiny.pt")
STARTS = (0.0, 0.004, 0.3, 0.5, 0.77, 1.0)


@pytest.fixture
def wavs():
    """Three utterances of unequal lengths; (samples,) each."""
    return [golden_wave("2.37s"), golden_wave("1s"), golden_wave("1s")[:9_000]]


def pair(start=0.5, weight=0.0, selection="hidden_states", **options):
    """An upstream and the featurizer that has its rate, as S3PRL's runner has them when it trains."""
    from s3prl_ofa.superb.featurizer import LengthAwareFeaturizer

    upstream = UpstreamExpert(CKPT, lambd="adaptive", lambd_start=start, rate_weight=weight, **options)
    featurizer = LengthAwareFeaturizer(upstream, feature_selection=selection, upstream_device="cpu")
    upstream.eval()
    return upstream, featurizer.train()


def features(upstream, featurizer, wavs):
    """As S3PRL's runner calls them for a frozen upstream."""
    with torch.no_grad():
        output = upstream(wavs)
    return featurizer(wavs, output)


def task_loss(features):
    """One that depends on order and number of frames."""
    rows = [torch.tanh(row @ torch.linspace(-1, 1, row.shape[1], dtype=row.dtype)) for row in features]
    return torch.stack([(row * torch.linspace(0.2, 1.7, len(row), dtype=row.dtype)).mean() for row in rows]).sum()


@pytest.mark.parametrize("start", STARTS)
def test_the_map_starts_where_it_is_told_and_stays_in_range(start):
    """lambd starts within 0.001 of any start in [0, 1], where it can move at most at the raw parameter's own speed and
    not at none; it is in [0, 1] for every raw value, both ends included."""
    rate = AdaptiveRate(start, 0.0)
    assert float(rate().detach()) == pytest.approx(start, abs=1.1e-3)
    rate().backward()
    assert 0.05 < float(rate.raw.grad) / DAMPING < 1 + 1e-6
    values = []
    for raw in torch.linspace(-20, 20, 2001):
        rate.raw.data = raw
        values.append(float(rate().detach()))
    assert 0 <= min(values) < 1e-4 and 1 - 1e-4 < max(values) <= 1


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(
    ("frames", "repeat", "selection"),
    [("native", 1, "hidden_states"), ("native", 2, "last_hidden_state"), ("upsampled", 1, "hidden_states")],
)
def test_gradient_by_finite_differences(start, frames, repeat, selection, wavs):
    """In float64, where the number of frames does not change, the gradient of the whole loss (task and frames) that the
    raw parameter gets is what finite differences give, times DAMPING, although the upstream is called under no_grad."""
    upstream, featurizer = pair(start, 0.8, selection, frames=frames, repeat=repeat)
    upstream.double(), featurizer.double()
    raw, step = featurizer.rate.raw, 1e-6

    def loss() -> tuple[torch.Tensor, list[int]]:
        found = features(upstream, featurizer, wavs)
        return featurizer.rate.with_rate_term(task_loss(found)), [len(row) for row in found]

    value, lengths = loss()
    value.backward()
    sides = []
    for sign in (1, -1):
        raw.data += sign * step
        sides.append(loss())
        raw.data -= sign * step
    assert sides[0][1] == sides[1][1] == lengths
    slope = float((sides[0][0] - sides[1][0]).detach()) / (2 * step)
    assert float(raw.grad) / DAMPING == pytest.approx(slope, rel=1e-4, abs=1e-7)
    assert all(parameter.grad is None for parameter in upstream.parameters())


@pytest.mark.parametrize("lambd", [0.2, 0.9])
def test_the_term_is_the_frame_rate(lambd, wavs):
    """What the loss is charged for is frames out / 20 ms frames in over the batch, up to the part of a frame that an
    utterance drops at its end; with its weight, once a batch, and not in evaluation."""
    upstream, featurizer = pair(lambd, weight=3.0, frames="native", repeat=2)
    output = upstream(wavs)
    share = float(featurizer.rate.with_rate_term(torch.zeros(())).detach()) / 3
    frames_out, frames_in = output["hidden_states_len"].sum() / 2, sum((len(wav) - 400) // 320 + 1 for wav in wavs)
    assert 0 <= share - float(frames_out / frames_in) <= len(wavs) / frames_in
    assert float(featurizer.rate.with_rate_term(torch.zeros(()))) == 0
    featurizer.eval()
    upstream(wavs)
    assert float(featurizer.rate.with_rate_term(torch.zeros(()))) == 0


def test_in_evaluation_it_is_that_lambd(wavs):
    """Evaluated, features are those of an upstream with this number for its lambd, bit for bit and without a graph."""
    upstream, featurizer = pair(0.37, frames="native")
    featurizer.eval()
    given = UpstreamExpert(CKPT, lambd=float(featurizer.rate()), frames="native").eval()
    with torch.no_grad():
        found, expected = upstream(wavs), given(wavs)
    assert not found["last_hidden_state"].requires_grad
    assert torch.equal(found["last_hidden_state"], expected["last_hidden_state"])


def test_s3prl_owns_one_parameter_more():
    """The rate is in the featurizer's state and parameters, also where one layer is selected and there are no weights
    of layers; the upstream has none of it; a featurizer at a given rate passes over a learnt one."""
    from s3prl_ofa.superb.featurizer import LengthAwareFeaturizer

    upstream, featurizer = pair(0.9)
    assert set(featurizer.state_dict()) == {"weights", "rate.raw"}
    assert [name for name, _ in pair(selection="hidden_state_1")[1].named_parameters()] == ["rate.raw"]
    assert not [name for name in upstream.state_dict() if "rate" in name]
    _, other = pair(0.2)
    other.load_state_dict(featurizer.state_dict())
    assert float(other.rate()) == pytest.approx(0.9)
    fixed = LengthAwareFeaturizer(UpstreamExpert(CKPT, lambd=0.5), upstream_device="cpu")
    fixed.load_state_dict(featurizer.state_dict())
    assert set(fixed.state_dict()) == {"weights"}


def test_the_runner_adds_the_term_to_what_is_divided_and_scaled(wavs):
    """The term is part of the loss that the downstream model returns, so S3PRL's division by the accumulation steps and
    its loss scaling hold for it as for the task's loss."""
    upstream, featurizer = pair(0.5, weight=2.0, frames="native")

    class Task(nn.Module):
        def forward(self, split, found, records=None):
            return 0.0 * task_loss(found)

        def log_records(self, split, **kwargs):
            return ["best.ckpt"]

    entries = {"upstream": upstream, "featurizer": featurizer}
    runner = types.SimpleNamespace(
        args=types.SimpleNamespace(mode="train", downstream="task"),
        config={"runner": {}},
        init_ckpt={},
        **{name: types.SimpleNamespace(model=model, trainable=False) for name, model in entries.items()},
    )
    task = with_adaptive_rate(lambda _: types.SimpleNamespace(model=Task()))(runner).model
    gradients = []
    for scale in (1, 1 / 4, 1024):
        featurizer.rate.raw.grad = None
        (task("train", features(upstream, featurizer, wavs), records={}) * scale).backward()
        gradients.append(float(featurizer.rate.raw.grad) / scale)
    assert gradients[0] < 0 and gradients[1:] == pytest.approx([gradients[0]] * 2)
    runner.upstream.trainable = True
    with pytest.raises(UsageError, match="-f"):
        with_adaptive_rate(lambda _: types.SimpleNamespace(model=Task()))(runner)


def test_distributed(wavs, tmp_path):
    """In DistributedDataParallel, as S3PRL wraps the featurizer, the rate gets the same gradient."""
    upstream, featurizer = pair(0.5, 1.0, frames="native")
    featurizer.rate.with_rate_term(task_loss(features(upstream, featurizer, wavs))).backward()
    expected, featurizer.rate.raw.grad = float(featurizer.rate.raw.grad), None
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(featurizer, find_unused_parameters=True)
        runner = types.SimpleNamespace(featurizer=types.SimpleNamespace(model=wrapped))
        assert adaptive.rate_of(runner) is featurizer.rate
        featurizer.rate.with_rate_term(task_loss(features(upstream, wrapped, wavs))).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert float(featurizer.rate.raw.grad) == pytest.approx(expected, rel=1e-5)


def test_elsewhere_lambd_is_a_number(wavs):
    """An upstream that nothing trains says so, where a rate that never moves would pass for a learnt one."""
    with pytest.raises(UsageError, match="run_downstream"):
        UpstreamExpert(CKPT, lambd="adaptive")(wavs)


def test_options():
    """Defaults, YAML and back, and that another rate leaves nothing of an adaptive one behind."""
    options = RateOptions(lambd="adaptive", rate_weight="1e-1", frames="native")
    assert (options.lambd_start, options.rate_weight) == (0.5, 0.1)
    assert RateOptions.layered(read_model_config(options.to_yaml())) == options
    assert str(options) == "adaptive lambd (start 0.5, rate weight 0.1), native frames"
    stored = read_model_config(options.to_yaml())
    assert RateOptions.layered(stored, {"lambd": 0.3}) == RateOptions(lambd=0.3, frames="native")
    assert RateOptions.layered(stored, {"lambd": "adaptive"}, {"rate_weight": 0.2}).rate_weight == 0.2
    assert RateOptions().lambd_start is None and "lambd_start" not in RateOptions().to_yaml()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate_weight": 0.1}, ["rate_weight", "adaptive"]),
        ({"lambd": 0.5, "rate_weight": 0.1}, ["rate_weight", "adaptive"]),
        ({"pool": 2, "lambd_start": 0.1}, ["lambd_start", "adaptive"]),
        ({"lambd": "adaptive", "rate_weight": -0.1}, ["rate_weight", "at least 0", "-0.1"]),
        ({"lambd": "adaptive", "rate_weight": float("inf")}, ["rate_weight", "inf"]),
        ({"lambd": "adaptive", "rate_weight": True}, ["rate_weight", "True"]),
        ({"lambd": "adaptive", "lambd_start": 1.1}, ["lambd_start", "[0, 1]", "1.1"]),
        ({"lambd": "adaptive", "lambd_start": -0.1}, ["lambd_start", "[0, 1]", "-0.1"]),
        ({"lambd": "adaptive", "lambd_start": float("nan")}, ["lambd_start", "nan"]),
        ({"lambd": "adaptive", "frame_period_ms": 40}, ["not more than one"]),
        ({"lambd": "adapted"}, ["lambd", "adaptive", "adapted"]),
    ],
)
def test_bad_options(options, words):
    """One sentence with what was found and what was expected."""
    with pytest.raises(UsageError) as error:
        RateOptions.layered(options)
    assert all(word in str(error.value) for word in words), error.value
