"""What makes the model fast: work is one set of operations whatever the number of frames and utterances."""

import pytest
import torch
import torch.nn.functional as F
from models import BASE, CONFIGS, noise_waves, random_model
from torch.utils._python_dispatch import TorchDispatchMode

from s3prl_ofa.model.cif import cif, crossing_times, frame_index, plan_cif


class Counter(TorchDispatchMode):
    """How many operations torch ran."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


SIZES = ((2, 20), (2, 2000), (40, 20))  # utterances, frames


def operations(run, *size) -> int:
    with Counter() as counter:
        run(*size)
    return counter.count


def test_cif_is_the_same_operations_for_any_number_of_frames_and_utterances():
    """Promise: one vectorised CIF that needs no Python loop over frames or utterances, with times and index."""

    def everything(batch, frames):
        weights = torch.rand(batch, frames, generator=torch.Generator().manual_seed(0))
        lengths = torch.full((batch,), frames)
        lengths[0] -= 3
        cif(torch.ones(batch, frames, 4), weights, lengths)
        plan = plan_cif(weights, lengths)
        return crossing_times(plan), frame_index(plan)

    counts = {operations(everything, *size) for size in SIZES}
    assert len(counts) == 1


def test_the_compressor_is_the_same_operations_too():
    """Promise: the same for the alpha predictor and the mixing with one lambd per utterance."""
    compressor = random_model(BASE).compressor

    def everything(batch, frames):
        lengths = torch.full((batch,), frames)
        rows = torch.ones(batch * frames, BASE.conv_dim)
        alpha = compressor.alpha(rows, lengths)
        compressor.compress(rows, compressor.plan(alpha, torch.linspace(0.1, 1.9, batch), lengths))

    counts = {operations(everything, *size) for size in SIZES}
    assert len(counts) == 1


@pytest.mark.parametrize("name", CONFIGS)
def test_attention_is_torch_s_own_one_call_a_layer(name, monkeypatch):
    """Promise: attention through scaled_dot_product_attention, once a layer for utterances of similar length."""
    calls = []
    attention = F.scaled_dot_product_attention

    def spy(query, *args, **kwargs):
        calls.append(len(query))
        return attention(query, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    random_model(CONFIGS[name]).extract(noise_waves([8_000, 9_000, 8_500]), lambd=0.3)
    assert calls == [3] * CONFIGS[name].layers
