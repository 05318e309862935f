"""``lambd: adaptive``: the curve of the task's loss over lambd, and where lambd settles on it."""

import math

import pytest
import torch

from s3prl_ofa.superb.learned_rate.rate import AdaptiveRate, Batch, LossCurve


@pytest.mark.parametrize("max_lambd", [1.0, 0.6])
def test_all_rates_are_tried(max_lambd):
    """A batch runs at two lambds that are uniform from 0 to lambd_max and drawn by torch's generator, so that the
    task's model is trained at all rates."""
    torch.manual_seed(0)
    rate = AdaptiveRate(0.5, 0.0, max_lambd)
    found = torch.tensor([rate.draw_lambds() for _ in range(2000)], dtype=torch.float64)
    ranks = torch.linspace(0, 1, 2000, dtype=torch.float64)
    for column in found.sort(0).values.T:
        assert float((column / max_lambd - ranks).abs().max()) < 0.04  # Kolmogorov and Smirnov, at 0.3%
    assert abs(float(torch.corrcoef(found.T)[0, 1])) < 0.08
    torch.manual_seed(0)
    assert rate.draw_lambds() == tuple(found[0].tolist())


@pytest.mark.parametrize("coefficients", [(0.1, 0, 0), (-0.2, 0.4, 0), (0.1, 0.1, 0.2)])
def test_the_curve_finds_the_loss(coefficients):
    """From noisy differences the curve finds the slope of the loss; when the loss becomes another, it forgets; nothing
    known is slope 0."""

    def slope(lambd, c):
        return sum(2 * power * c[power - 1] * (2 * lambd - 1) ** (power - 1) for power in (1, 2, 3))

    def feed(c, batches):
        for _ in range(batches):
            here, there, noise = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
            values = [sum(c[power - 1] * (2 * x - 1) ** power for power in (1, 2, 3)) for x in (here, there)]
            curve.add(here, there, values[1] - values[0] + 0.1 * (noise - 0.5))

    generator, curve = torch.Generator().manual_seed(0), LossCurve()
    assert curve.slope(0.3) == 0
    for c, batches in ((coefficients, 1000), ([-x for x in coefficients], 3000)):
        feed(c, batches)
        for lambd in (0.1, 0.5, 0.9):
            assert curve.slope(lambd) == pytest.approx(slope(lambd, c), abs=0.08)


def test_the_curve_ignores_what_is_not_finite():
    """A loss that is infinite or NaN at one of the two lambds leaves the curve as it is."""
    curve = LossCurve()
    curve.add(0.1, 0.9, 0.5)
    before = curve.slope(0.5)
    for difference in (math.inf, -math.inf, math.nan):
        curve.add(0.3, 0.6, difference)
    assert curve.slope(0.5) == before > 0


@pytest.mark.parametrize(("weight", "settled"), [(0.0, 0.3), (0.6, 0.525), (3.0, 1.0)])
def test_starts_meet(weight, settled):
    """Wherever lambd starts it settles where the task's loss and the weighted frame rate are least together; a larger
    weight settles at fewer frames. Once the curve is no longer measured it rests there. (A loss of (lambd - 0.3)^2 with
    noise, and 3/4 of the frames gone at lambd 1.)"""
    for start in (0.0, 0.5, 1.0):
        torch.manual_seed(0)
        rate = AdaptiveRate(start, weight).train()
        optimizer = torch.optim.Adam(rate.parameters(), lr=1e-2)
        lambds = []
        for batch in range(900):
            here, there = rate.draw_lambds()
            rate.batch = Batch([], here, there, torch.tensor([400.0]), torch.tensor([100.0]))
            noise = 0.2 * float(torch.randn(()))
            optimizer.zero_grad()
            difference = (there - 0.3) ** 2 - (here - 0.3) ** 2 + noise if batch < 600 else None
            rate(torch.zeros(()), difference).backward()
            optimizer.step()
            lambds.append(rate.value)
        assert sum(lambds[500:600]) / 100 == pytest.approx(settled, abs=0.08), start
        assert lambds[-1] == pytest.approx(settled, abs=0.12) and max(lambds[-50:]) - min(lambds[-50:]) < 0.02, start
