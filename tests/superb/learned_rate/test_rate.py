"""``lambd: adaptive`` in parts: its map, and its gradient from two runs of a batch."""

import collections
import functools
import math
import types

import pytest
import torch
import torch.distributed
from models import golden_wave
from paths import CKPT
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import s3prl_ofa.superb  # noqa: F401  (registers)
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.learned_rate.rate import DAMPING, MAX_DIFFERENCE, MIN_SLOPE, AdaptiveRate
from s3prl_ofa.superb.learned_rate.training import train_rate
from s3prl_ofa.superb.upstream.expert import Measured, UpstreamExpert

STARTS = (0.0, 0.004, 0.3, 0.5, 0.77, 1.0)


@pytest.fixture
def waves():
    """Three utterances of unequal lengths; (samples,) each."""
    return [golden_wave("2.37s"), golden_wave("1s"), golden_wave("1s")[:9_000]]


def pair(start=0.5, weight=0.0, selection="hidden_states", **options):
    """An upstream that follows a rate, and its featurizer, as S3PRL's runner has them when it trains."""
    from s3prl_ofa.superb.upstream.featurizer import LengthAwareFeaturizer

    upstream = UpstreamExpert(CKPT, lambd="adaptive", lambd_start=start, rate_weight=weight, **options)
    upstream.follow(AdaptiveRate(start, weight))
    featurizer = LengthAwareFeaturizer(upstream, feature_selection=selection, upstream_device="cpu")
    upstream.eval(), upstream.rate.train()
    return upstream, featurizer.train()


def features(upstream, featurizer, waves):
    """As S3PRL's runner calls them for a frozen upstream."""
    with torch.no_grad():
        output = upstream(waves)
    return featurizer(waves, output)


def task_loss(features):
    """One that depends on order and number of frames."""
    rows = [torch.tanh(row @ torch.linspace(-1, 1, row.shape[1], dtype=row.dtype)) for row in features]
    return torch.stack([(row * torch.linspace(0.2, 1.7, len(row), dtype=row.dtype)).mean() for row in rows]).sum()


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("max_lambd", [1.0, 0.7])
def test_the_map_starts_where_it_is_told_and_stays_in_range(start, max_lambd):
    """lambd starts within 0.001 of any start from 0 to lambd_max, where its gradient is at most the raw parameter's own
    and at least MIN_SLOPE of it, times lambd_max; it is in that range for every raw value, both ends included."""
    rate = AdaptiveRate(max_lambd * start, 0.0, max_lambd)
    assert float(rate.lambd().detach()) == pytest.approx(max_lambd * start, abs=1.1e-3)
    rate.lambd().backward()
    assert MIN_SLOPE - 1e-6 < float(rate.raw.grad) / DAMPING / max_lambd < 1 + 1e-6
    values = []
    for raw in torch.linspace(-20, 20, 2001):
        rate.raw.data = raw
        values.append(float(rate.lambd().detach()))
    assert 0 <= min(values) < 1e-4 and max_lambd - 1e-4 < max(values) <= max_lambd


class Task(nn.Module):
    """A downstream model whose loss depends on order and number of frames, and on dropout."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.dropout = nn.Dropout(dropout)

    def forward(self, split, found, scale, records):
        records["seen"].append(split)
        return scale * task_loss([self.dropout(row) for row in found])

    def log_records(self, split, **kwargs):
        return ["best.ckpt"]


def step(upstream, featurizer, waves, task, scale=1.0, records=None):
    """The loss that S3PRL's runner goes back from."""
    return task("train", features(upstream, featurizer, waves), scale, records=collections.defaultdict(list))


def runner_of(upstream, featurizer, task=None, settings=None, wrap=lambda rate: rate, **args):
    """A runner of S3PRL's, as far as the rate asks for it, and its downstream model. settings: of the runner."""
    entries = {"upstream": upstream, "featurizer": featurizer, "rate": wrap(upstream.rate)}
    entries["downstream"] = Task() if task is None else task
    runner = types.SimpleNamespace(
        args=types.SimpleNamespace(**{"mode": "train", "downstream": "task", **args}),
        config={"runner": {"total_steps": 1000, **(settings or {})}},
        init_ckpt={},
        **{name: types.SimpleNamespace(model=model, trainable=False) for name, model in entries.items()},
    )
    train_rate(runner, upstream.rate)
    return runner, runner.downstream.model


def loss_at(lambd, waves, **options):
    """The task's loss of an upstream and featurizer with a number for lambd, in float64."""
    from s3prl_ofa.superb.upstream.featurizer import LengthAwareFeaturizer

    upstream = UpstreamExpert(CKPT, lambd=lambd, **options)
    featurizer = LengthAwareFeaturizer(upstream, feature_selection="hidden_states", upstream_device="cpu")
    return float(task_loss(features(upstream.double().eval(), featurizer.double(), waves)).detach())


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("frames", "repeat"), [("native", 1), ("native", 2), ("upsampled", 1)])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_gradient(start, frames, repeat, scale, waves):
    """The raw parameter's gradient is DAMPING times the map's slope times (the slope of the fitted curve and the
    weighted slope of the frame rate); the curve is fitted to the difference of the task's losses at the two lambds of
    the batch, of which MAX_DIFFERENCE counts at most; nothing else has a gradient."""
    upstream, featurizer = pair(start, 0.8, output_frames=frames, repeat=repeat)
    upstream.double(), featurizer.double(), upstream.rate.double()
    rate, (_, task) = upstream.rate, runner_of(upstream, featurizer)
    lambd, here, there = rate.value, 0.7, 0.4
    rate.draw_lambds = lambda: (here, there)
    loss = step(upstream, featurizer, waves, task, scale)
    loss.backward()
    losses = [scale * loss_at(value, waves, output_frames=frames, repeat=repeat) for value in (here, there)]
    difference = max(-MAX_DIFFERENCE, min(MAX_DIFFERENCE, losses[1] - losses[0]))
    powers = torch.tensor([(2 * there - 1) ** power - (2 * here - 1) ** power for power in (1, 2, 3)])
    slopes = torch.tensor([2 * power * (2 * lambd - 1) ** (power - 1) for power in (1, 2, 3)])
    slope = (
        float(slopes @ powers) * difference / (1 + float(powers @ powers))
    )  # least squares, one row and a unit prior
    alpha, lengths = upstream.model.alpha(waves)
    share = float((alpha.sum() - lengths.sum()) / lengths.sum())
    along = max(MIN_SLOPE, 2 * (lambd * (1 - lambd)) ** 0.5)  # of the map: cos(2 raw)
    assert float(rate.raw.grad) / DAMPING == pytest.approx(along * (slope + 0.8 * share), rel=1e-5)
    assert float(loss.detach()) == pytest.approx(losses[0] + 0.8 * (1 + lambd * share), rel=1e-6)
    assert all(parameter.grad is None for parameter in upstream.parameters())


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_it_leaves_an_end(end):
    """At the very end, where the sine is flat, and with an Adam that remembers larger gradients, a weak pull inwards
    moves it away all the same."""
    rate = AdaptiveRate(0.5, 0.0)
    optimizer = torch.optim.Adam(rate.parameters(), lr=1e-2)

    def move(slope):
        optimizer.zero_grad()
        (slope * rate.lambd()).backward()
        optimizer.step()

    for step in range(100):
        move(1.0 if step % 2 else -1.0)
    with torch.no_grad():
        rate.raw.copy_(torch.tensor((end - 0.5) * torch.pi / 2))
    assert rate.value == pytest.approx(end, abs=1e-9)
    for _ in range(100):
        move(0.5 if end else -0.5)
    assert abs(rate.value - end) > 0.01


def test_the_second_run_leaves_no_trace(waves):
    """Random numbers, what was measured and the records of the task are as without it; dropout is the same in both
    runs, so that it makes no slope where the features are the same."""
    upstream, featurizer = pair(0.5, 0.0, output_frames="native")
    rate, (_, task) = upstream.rate, runner_of(upstream, featurizer, Task(dropout=0.5).train())
    rate.draw_lambds = lambda: (0.5, 0.5)  # the same features
    upstream.measured = Measured()
    records = collections.defaultdict(list)
    torch.manual_seed(1)
    loss = task("train", features(upstream, featurizer, waves), 1.0, records=records)
    after = torch.get_rng_state()
    assert records == {"seen": ["train"]} and upstream.measured.utterances == len(waves)
    loss.backward()
    assert abs(float(rate.raw.grad)) < 1e-6
    torch.manual_seed(1)
    Task(dropout=0.5).train()("train", features(upstream, featurizer, waves), 1.0, records=records)
    assert torch.equal(torch.get_rng_state(), after)


@pytest.mark.parametrize(("steps", "accumulation"), [(8, None), (8, 1), (4, 2)])
def test_in_the_second_half_it_runs_at_lambd_alone(steps, accumulation, waves, monkeypatch):
    """For half of a training's batches, also those that S3PRL accumulates and those whose loss is not finite, each runs
    at two drawn lambds; then at lambd alone, which follows the curve as that has become. A resumed training goes on in
    its half."""

    def run(upstream, featurizer, batches):
        """The lambds at which these batches run; the last one's gradient."""
        lambds, extract = [], upstream.model.extract
        monkeypatch.setattr(
            upstream.model, "extract", lambda *args, lambd: lambds.append(lambd) or extract(*args, lambd=lambd)
        )
        _, task = runner_of(upstream, featurizer, settings=settings)
        for scale in batches:
            upstream.rate.raw.grad = None
            step(upstream, featurizer, waves, task, scale).backward()
        return lambds, float(upstream.rate.raw.grad)

    settings = {"total_steps": steps, "gradient_accumulate_steps": accumulation}
    upstream, featurizer = pair(0.3, 0.5, output_frames="native")
    lambds, _ = run(upstream, featurizer, [1.0, float("inf"), 1.0, 1.0])
    rate = upstream.rate
    assert len(set(lambds)) == 8 and rate.value not in lambds
    curve = {name: value.clone() for name, value in rate.curve.state_dict().items()}
    resumed = pair(0.7, 0.5, output_frames="native")
    resumed[0].rate.load_state_dict(rate.state_dict())
    for models in ((upstream, featurizer), resumed):
        rate = models[0].rate
        lambds, gradient = run(*models, [1.0, 1e3])
        assert lambds == [rate.value] * 2 == [pytest.approx(0.3)] * 2
        assert all(torch.equal(value, curve[name]) for name, value in rate.curve.state_dict().items())
        alpha, lengths = upstream.model.alpha(waves)
        share = float((alpha.sum() - lengths.sum()) / lengths.sum())
        along = 2 * (rate.value * (1 - rate.value)) ** 0.5
        assert gradient / DAMPING == pytest.approx(along * (rate.curve.slope(rate.value) + 0.5 * share), rel=1e-5)


def test_a_loss_that_is_not_finite_moves_nothing(waves):
    """A batch whose loss is infinite at one of the two rates leaves the rate to the price of frames."""
    upstream, featurizer = pair(0.5, 0.0, output_frames="native")
    _, task = runner_of(upstream, featurizer)
    step(upstream, featurizer, waves, task, float("inf"))
    assert upstream.rate.batch is None  # used up
    features(upstream, featurizer, waves)
    upstream.rate(torch.zeros(()), float("nan")).backward()
    assert float(upstream.rate.raw.grad) == 0


@pytest.mark.parametrize("lambd", [0.2, 0.9])
def test_the_term_is_the_frame_rate(lambd, waves):
    """What the loss is charged for is frames out / 20 ms frames in over the batch, up to the part of a frame that an
    utterance drops at its end; with its weight, once a batch, and not in evaluation."""
    upstream, featurizer = pair(lambd, weight=3.0, output_frames="native", repeat=2)
    upstream.rate.draw_lambds = lambda: (lambd, 0.5)

    _, task = runner_of(upstream, featurizer)

    def term():
        return float(
            task("train", features(upstream, featurizer, waves), 0.0, records=collections.defaultdict(list)).detach()
        )

    share = term() / 3
    output = upstream(waves)
    frames_out, frames_in = output["hidden_states_len"].sum() / 2, sum((len(wave) - 400) // 320 + 1 for wave in waves)
    assert 0 <= share - float(frames_out / frames_in) <= len(waves) / frames_in
    found = features(upstream, featurizer, waves)
    upstream.rate.batch = None
    assert task("train", found, 0.0, records=collections.defaultdict(list)) == 0
    upstream.rate.eval()
    assert term() == 0


@pytest.mark.parametrize("lambd", [0.0, 0.5, 1.0])
def test_the_period_of_training_is_that_of_lambd(lambd, waves):
    """The frame period that training reports is the one that evaluation at lambd has, up to the part of a frame that an
    utterance drops, although batches run at other lambds."""
    upstream, featurizer = pair(lambd, output_frames="native")
    assert math.isnan(upstream.rate.frame_period_ms)
    for _ in range(3):
        upstream(waves)
    period = upstream.rate.frame_period_ms
    upstream.rate.eval()
    upstream.measured = Measured()
    upstream(waves)
    frames = upstream.measured.frames
    assert frames / (frames + len(waves)) <= period / upstream.measured.frame_period_ms <= 1 + 1e-9


def test_in_evaluation_it_is_that_lambd(waves):
    """Evaluated, features are those of an upstream with this number for its lambd, bit for bit and without a graph."""
    upstream, _ = pair(0.37, output_frames="native")
    upstream.rate.eval()
    given = UpstreamExpert(CKPT, lambd=upstream.rate.value, output_frames="native").eval()
    with torch.no_grad():
        found, expected = upstream(waves), given(waves)
    assert not found["last_hidden_state"].requires_grad
    assert torch.equal(found["last_hidden_state"], expected["last_hidden_state"])


def test_the_rate_is_a_module_of_its_own():
    """The rate has one parameter, and its curve is saved with it; upstream and featurizer have none of it."""
    upstream, featurizer = pair(0.9)
    upstream.rate.curve.add(0.2, 0.8, 0.3)
    assert [name for name, _ in upstream.rate.named_parameters()] == ["raw"]
    assert set(upstream.rate.state_dict()) == {"raw", "curve.gram", "curve.moment", "curve.batches"}
    assert set(featurizer.state_dict()) == {"weights"} and set(upstream.state_dict()) == {
        f"model.{name}" for name in upstream.model.state_dict()
    }
    other = AdaptiveRate(0.2, 0.0)
    other.load_state_dict(upstream.rate.state_dict())
    assert other.value == pytest.approx(0.9)
    assert other.curve.slope(0.4) == upstream.rate.curve.slope(0.4) != 0


def test_the_runner_adds_the_term_to_what_is_divided_and_scaled(waves):
    """The term is part of the loss that the downstream model returns, so S3PRL's division by the accumulation steps and
    its loss scaling hold for it as for the task's loss."""
    upstream, featurizer = pair(0.5, weight=2.0, output_frames="native")

    runner, task = runner_of(upstream, featurizer)
    gradients = []
    for scale in (1, 1 / 4, 1024):
        upstream.rate.raw.grad = None
        (step(upstream, featurizer, waves, task, 0.0) * scale).backward()
        gradients.append(float(upstream.rate.raw.grad) / scale)
    assert gradients[0] < 0 and gradients[1:] == pytest.approx([gradients[0]] * 2)


def test_distributed(waves, tmp_path):
    """In DistributedDataParallel, as S3PRL wraps it, the rate gets the same gradient."""
    upstream, featurizer = pair(0.5, 1.0, output_frames="native")
    upstream.rate.draw_lambds = lambda: (0.4, 0.6)
    step(upstream, featurizer, waves, runner_of(upstream, featurizer)[1]).backward()
    expected = float(upstream.rate.raw.grad)
    upstream, featurizer = pair(0.5, 1.0, output_frames="native")
    upstream.rate.draw_lambds = lambda: (0.4, 0.6)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = functools.partial(DistributedDataParallel, find_unused_parameters=True)
        featurizer = parallel(featurizer)
        _, task = runner_of(upstream, featurizer, wrap=parallel)
        step(upstream, featurizer, waves, task).backward()
    finally:
        torch.distributed.destroy_process_group()
    assert float(upstream.rate.raw.grad) == pytest.approx(expected, rel=1e-5)


def test_without_a_runner_lambd_must_be_a_number(waves):
    """Without a runner that trains the rate the upstream raises an error: a fixed rate could pass for a learned one."""
    with pytest.raises(UsageError, match="run_downstream"):
        UpstreamExpert(CKPT, lambd="adaptive")(waves)


def test_statistics_of_the_task_are_left_alone(waves):
    """Batch norm of the downstream model sees each batch once, at the present rate, and is in training again after."""
    upstream, featurizer = pair(0.5, 0.0, output_frames="native")

    class Normed(Task):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(featurizer.output_dim)

        def forward(self, split, found, scale, records):
            return super().forward(split, [self.norm(row) for row in found], scale, records)

    _, task = runner_of(upstream, featurizer, Normed().train())
    step(upstream, featurizer, waves, task).backward()
    assert int(task.norm.num_batches_tracked) == len(waves) and task.norm.training
    assert float(upstream.rate.raw.grad) != 0
