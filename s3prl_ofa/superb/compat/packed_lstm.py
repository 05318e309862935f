"""An LSTM for S3PRL's asr whose training time on the CPU is linear, not quadratic, in the length of the speech."""

import contextlib
import importlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from s3prl_ofa.checkpoint.safe_loading import patched_attributes
from s3prl_ofa.superb.compat.shims import ModuleOverlay


@contextlib.contextmanager
def packed_lstm_in_asr() -> Iterator[None]:
    """Builds S3PRL's asr models with a PackedLSTM within this block."""
    model = importlib.import_module("s3prl.downstream.asr.model")
    with patched_attributes(model, nn=ModuleOverlay(model.nn, LSTM=PackedLSTM)):
        yield


class PackedLSTM(nn.LSTM):
    """``nn.LSTM`` of one layer, with a faster backward pass for packed sequences on the CPU.

    PyTorch splits the packed batch into time steps, and its backward pass allocates a gradient of the size of the whole
    batch for each of them. Here each direction runs over the padded batch, the backward direction over utterances
    reversed within their lengths; outputs and gradients are the same up to rounding. The final states, which asr does
    not use, are None.
    """

    def forward(self, input: Tensor | PackedSequence, hx: tuple[Tensor, Tensor] | None = None) -> tuple:
        on_cpu = isinstance(input, PackedSequence) and input.data.device.type == "cpu"
        if not on_cpu or hx is not None or self.num_layers > 1 or self.proj_size:
            return super().forward(input, hx)
        rows, lengths = pad_packed_sequence(input, batch_first=True)
        outputs = [self.direction(rows, "")]
        if self.bidirectional:
            outputs.append(reversed_within(self.direction(reversed_within(rows, lengths), "_reverse"), lengths))
        packed = pack_padded_sequence(torch.cat(outputs, 2), lengths, batch_first=True, enforce_sorted=False)
        return packed, None

    def direction(self, rows: Tensor, suffix: str) -> Tensor:
        """(batch, frames, dim) through the weights of one direction, from zero states."""
        names = ("weight_ih_l0", "weight_hh_l0", *(("bias_ih_l0", "bias_hh_l0") if self.bias else ()))
        weights = [getattr(self, name + suffix) for name in names]
        zeros = rows.new_zeros(1, len(rows), self.hidden_size)
        return torch.lstm(rows, (zeros, zeros), weights, self.bias, 1, 0.0, self.training, False, True)[0]


def reversed_within(rows: Tensor, lengths: Tensor) -> Tensor:
    """Each utterance of (batch, frames, dim) with its frames in reverse order; padding stays in place."""
    frame = torch.arange(rows.shape[1])
    index = torch.where(frame < lengths[:, None], lengths[:, None] - 1 - frame, frame)
    return rows.gather(1, index[:, :, None].expand(-1, -1, rows.shape[2]))
