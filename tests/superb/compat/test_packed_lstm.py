"""The LSTM that S3PRL's asr has here gives the same numbers as PyTorch's."""

import importlib

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import s3prl_ofa.superb  # noqa: F401 (registers)
from s3prl_ofa.superb.compat.packed_lstm import PackedLSTM, packed_lstm_in_asr


def outputs_and_gradients(layer: nn.LSTM, rows: torch.Tensor, lengths: torch.Tensor) -> list[torch.Tensor]:
    rows = rows.clone().requires_grad_(True)
    packed = pack_padded_sequence(rows, lengths, batch_first=True, enforce_sorted=False)
    output, found = pad_packed_sequence(layer(packed)[0], batch_first=True)
    assert found.tolist() == lengths.tolist()
    loss = (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum()
    return [output, *torch.autograd.grad(loss, [rows, *layer.parameters()])]


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lengths", [[7], [3, 9, 1, 9], [5, 5, 2]])
def test_same_as_pytorch(bidirectional: bool, bias: bool, lengths: list[int]) -> None:
    """Outputs and all gradients are those of ``nn.LSTM`` in float64, whatever the lengths and their order."""
    torch.manual_seed(0)
    reference = nn.LSTM(4, 6, bias=bias, bidirectional=bidirectional, batch_first=True).double()
    layer = PackedLSTM(4, 6, bias=bias, bidirectional=bidirectional, batch_first=True).double()
    layer.load_state_dict(reference.state_dict())
    rows = torch.randn(len(lengths), max(lengths), 4, dtype=torch.float64)
    for ours, theirs in zip(
        outputs_and_gradients(layer, rows, torch.tensor(lengths)),
        outputs_and_gradients(reference, rows, torch.tensor(lengths)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_other_cases_are_left_to_pytorch() -> None:
    """A padded batch, given states, or several layers are left to PyTorch, final states included."""
    torch.manual_seed(0)
    layer, rows = PackedLSTM(4, 6, batch_first=True), torch.randn(2, 5, 4)
    reference = nn.LSTM(4, 6, batch_first=True)
    reference.load_state_dict(layer.state_dict())
    torch.testing.assert_close(layer(rows), reference(rows))
    packed = pack_padded_sequence(rows, torch.tensor([5, 3]), batch_first=True)
    states = (torch.zeros(1, 2, 6), torch.zeros(1, 2, 6))
    torch.testing.assert_close(layer(packed, states)[1], reference(packed, states)[1])
    assert PackedLSTM(4, 6, num_layers=2)(packed)[1] is not None


def test_s3prl_asr_has_it() -> None:
    """S3PRL's asr model is made of it in our runner alone, with the parameters it always had; other names of ``nn``
    stay."""
    model = importlib.import_module("s3prl.downstream.asr.model")

    def built(kind: str) -> nn.Module:
        return model.RNNLayer(4, kind, True, 6, 0.0, False, 1, False).layer

    with packed_lstm_in_asr():
        assert type(built("LSTM")) is PackedLSTM and type(built("GRU")) is nn.GRU
        assert set(built("LSTM").state_dict()) == set(nn.LSTM(4, 6, bidirectional=True).state_dict())
    assert type(built("LSTM")) is nn.LSTM
