"""Parity with the reference: its results for a tiny checkpoint and for its CIF, kept in golden/."""

import numpy as np
import pytest
import torch
from models import GOLDEN_WAVES, golden_model, golden_wave
from paths import GOLDEN

from s3prl_ofa.model import cif
from s3prl_ofa.model.cif import apply_cif, plan_cif
from s3prl_ofa.model.packing import unpad
from s3prl_ofa.model.rate import mix

LAMBDS = (0.0, 0.25, 0.5, 0.75, 1.0)
TOLERANCE = 1e-4

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def model():
    return golden_model()


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "ref_tiny_golden.npz")


@pytest.fixture(scope="module")
def core():
    return np.load(GOLDEN / "ref_core_golden.npz")


def assert_close(found, expected, tolerance=TOLERANCE):
    expected = torch.from_numpy(np.asarray(expected))
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("lambd", LAMBDS)
@pytest.mark.parametrize("wave", GOLDEN_WAVES)
def test_hidden_states_and_lengths_are_the_reference_s(model, golden, wave, lambd):
    """Promise: every golden value within 1e-4 absolute and every length identical, one utterance at a time."""
    out = model.extract([golden_wave(wave)], lambd=lambd)
    key = f"{wave}/lambd{lambd}"
    assert out.lengths.tolist() == golden[f"{key}/cif_lengths"].tolist()
    assert len(out.hidden_states) == 3
    assert_close(out.hidden_states[-1], golden[f"{key}/x"])
    assert_close(out.hidden_states[1][0], golden[f"{key}/layer0/x"][:, 0])
    assert_close(out.hidden_states[2][0], golden[f"{key}/layer1/x"][:, 0])


@pytest.mark.parametrize("lambd", LAMBDS)
@pytest.mark.parametrize("wave", GOLDEN_WAVES)
def test_compressor_is_the_reference_s(model, golden, wave, lambd):
    """Promise: alpha, the mixed weights, the fired frames, where they fire and their delays are the reference's."""
    key = f"{wave}/lambd{lambd}"
    alpha, input_lengths = model.alpha([golden_wave(wave)])
    assert alpha.dtype == torch.float64 and input_lengths.tolist() == [alpha.shape[1]]
    assert_close(alpha, golden[f"{key}/alpha"])
    weights = mix(alpha, torch.tensor([lambd]))
    assert_close(weights, golden[f"{key}/mixed_alpha"])
    plan = plan_cif(weights, input_lengths)
    assert plan.lengths.tolist() == golden[f"{key}/cif_lengths"].tolist()
    fires = torch.floor(plan.end) > torch.floor(plan.begin)
    assert fires.long().tolist() == golden[f"{key}/fire_index"].tolist()
    # A delay is the mean input position of an output frame, up to 249, so the reference's float32 shows in it.
    positions = torch.arange(1, alpha.shape[1] + 1, dtype=torch.float64)[:, None]
    delays = torch.from_numpy(golden[f"{key}/delays"]).double()
    torch.testing.assert_close(apply_cif(positions, plan).T, delays, rtol=2e-5, atol=1e-4)
    rows, _ = model.front_end_rows([golden_wave(wave)])
    assert_close(apply_cif(rows, plan)[None], golden[f"{key}/cif_out"])


def test_golden_batch_is_the_reference_s_utterance_by_utterance(model, golden):
    """Promise: parity holds in a batch too, with a different lambd per utterance."""
    for shift in range(len(LAMBDS)):
        lambds = [LAMBDS[(shift + index) % len(LAMBDS)] for index in range(len(GOLDEN_WAVES))]
        out = model.extract([golden_wave(wave) for wave in GOLDEN_WAVES], lambd=lambds)
        for index, (wave, lambd) in enumerate(zip(GOLDEN_WAVES, lambds, strict=True)):
            expected = golden[f"{wave}/lambd{lambd}/x"]
            assert out.lengths[index] == expected.shape[1]
            assert_close(out.hidden_states[-1][index, : expected.shape[1]], expected[0])


@pytest.mark.parametrize("case", range(3))
def test_cif_outputs_are_the_reference_s(core, case):
    """Promise: the CIF goldens, outputs and lengths. The reference leaves the dropped tail in a shorter row's padding;
    ours is zero there."""
    frames, weights, expected = (torch.from_numpy(core[f"cif/{case}/{name}"]) for name in ("x", "a", "y"))
    found, lengths = cif(frames, weights)
    assert lengths.tolist() == core[f"cif/{case}/len"].tolist()
    assert found.shape == expected.shape
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row, :length], expected[row, :length], rtol=0, atol=1e-5)
        assert not found[row, length:].any()


@pytest.mark.parametrize("case", range(3))
def test_cif_gradients_are_the_reference_s(core, case):
    """Promise: the CIF goldens' gradients in the frames and in the weights, row by row.

    The tail in a shorter row's padding has a gradient in the reference. One more frame, of zeros, whose weight fills
    the last output frame, makes that tail a fired frame here as well.
    """
    names = ("x", "a", "w", "gx", "ga")
    frames, weights, out_grad, expected_x, expected_a = (torch.from_numpy(core[f"cif/{case}/{name}"]) for name in names)
    longest = out_grad.shape[1]
    for row, length in enumerate(core[f"cif/{case}/len"].tolist()):
        x = frames[row : row + 1].clone().requires_grad_()
        a = weights[row : row + 1].clone().requires_grad_()
        fed_x, fed_a = x, a
        if length < longest:
            total = weights[row].double().sum()
            filler = (1 - (total - torch.floor(total))).float()
            fed_x = torch.cat([x, torch.zeros(1, 1, x.shape[2])], 1)
            fed_a = torch.cat([a, filler[None, None]], 1)
        found, lengths = cif(fed_x, fed_a)
        assert lengths.item() == min(length + 1, longest)
        (found * out_grad[row : row + 1, : found.shape[1]]).sum().backward()
        torch.testing.assert_close(x.grad[0], expected_x[row], rtol=0, atol=1e-4)
        torch.testing.assert_close(a.grad[0], expected_a[row], rtol=1e-4, atol=1e-4)


def test_short_rows_of_a_cif_batch_have_no_gradient_from_their_padding(core):
    """Promise: padding never reaches CIF: an output gradient on a row's padding moves nothing."""
    frames, weights = torch.from_numpy(core["cif/1/x"]).requires_grad_(), torch.from_numpy(core["cif/1/a"])
    found, lengths = cif(frames, weights.requires_grad_())
    row = int(lengths.argmin())
    padding = found[row, int(lengths[row]) :]
    assert len(padding)
    padding.sum().backward()
    assert not frames.grad.any() and not weights.grad.any()


@pytest.mark.cpu_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_give_the_same_lengths(golden, dtype):
    """Promise: lengths never go off by one, in float16 and bfloat16 models alike; hidden states are finite and near."""
    model = golden_model(dtype)
    for lambd in LAMBDS:
        out = model.extract([golden_wave(wave) for wave in GOLDEN_WAVES], lambd=lambd)
        for index, wave in enumerate(GOLDEN_WAVES):
            expected = torch.from_numpy(golden[f"{wave}/lambd{lambd}/x"][0])
            assert out.lengths[index] == len(expected)
            found = out.hidden_states[-1][index, : len(expected)]
            assert found.dtype == dtype and found.isfinite().all()
            error = (found.float() - expected).norm() / expected.norm()
            assert error < (0.01 if dtype == torch.float16 else 0.08)


def test_golden_rows_survive_unpadding(core):
    """Promise: apply_cif on rows laid end to end is cif on the padded batch."""
    frames, weights = torch.from_numpy(core["cif/2/x"]), torch.from_numpy(core["cif/2/a"])
    lengths = torch.tensor([200, 150])
    plan = plan_cif(weights, lengths)
    rows = apply_cif(unpad(frames, lengths), plan)
    padded, out_lengths = cif(frames, weights, lengths)
    assert torch.equal(rows, unpad(padded, out_lengths))
