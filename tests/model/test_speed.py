"""What makes the model fast: one set of operations, whatever the number of frames and utterances."""

import pytest
import torch
import torch.nn.functional as F
from models import BASE, CONFIGS, noise_waves, random_model
from torch.utils._python_dispatch import TorchDispatchMode

from s3prl_ofa.model.attention import Attention, AttentionGroup, attention_groups
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
    """Promise: attention through scaled_dot_product_attention: one call for equal lengths, else one per utterance."""
    calls = []
    attention = F.scaled_dot_product_attention

    def spy(query, *args, **kwargs):
        calls.append(len(query))
        return attention(query, *args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    random_model(CONFIGS[name]).extract(noise_waves([8_000, 8_000, 8_000]))
    assert calls == [3] * CONFIGS[name].layers
    calls.clear()
    random_model(CONFIGS[name]).extract(noise_waves([8_000, 9_000, 8_500]))
    assert calls == [1] * 3 * CONFIGS[name].layers


@pytest.mark.parametrize("name", CONFIGS)
def test_on_a_card_utterances_of_similar_length_are_one_call(name):
    """Promise: there, groups within 1.3 of their shortest; results are those of single utterances."""
    lengths = torch.tensor([40, 31, 90, 33, 100])
    groups = attention_groups(lengths, torch.device("meta"))
    assert [group.lengths.tolist() for group in groups] == [[31, 33, 40], [90, 100]]
    layer = random_model(CONFIGS[name]).encoder.layers[0]
    rows = torch.randn(int(lengths.sum()), CONFIGS[name].dim)
    expected, grouped = layer(rows, Attention(lengths, rows.device)), Attention(lengths, rows.device)
    grouped.groups = [
        AttentionGroup(lengths, members, rows.device) for members in (torch.tensor([1, 3, 0]), torch.tensor([2, 4]))
    ]
    torch.testing.assert_close(layer(rows, grouped), expected, rtol=0, atol=1e-5)
