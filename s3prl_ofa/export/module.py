"""What the ONNX file computes, as a module whose inputs and outputs are all tensors."""

import torch
from torch import Tensor, nn

from s3prl_ofa.model import OFAWav2Vec2
from s3prl_ofa.model.padded import padded_states


class ExportedModel(nn.Module):
    """``OFAWav2Vec2`` on a padded batch, sharing its weights.

    layers: how many of the encoder's layers are run. lambd: a fixed rate; None takes it as an input.
    """

    def __init__(self, model: OFAWav2Vec2, layers: int, lambd: float | None) -> None:
        super().__init__()
        self.model, self.layers, self.lambd = model, layers, lambd

    def forward(self, wave: Tensor, length: Tensor, lambd: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Hidden states (batch, frames, dim) after the last of ``layers``, zeros as padding, and frames (batch,) int64.

        wave: (batch, samples) float32, 16 kHz mono. length: (batch,) int64, samples of each, at least 400. lambd:
        (batch,) float32, each in [0, 2).
        """
        if lambd is None and self.lambd:
            lambd = torch.full_like(length, self.lambd, dtype=torch.float64)
        (states,), frames = padded_states(self.model, wave, length, lambd, None, [self.layers])
        return states, frames
