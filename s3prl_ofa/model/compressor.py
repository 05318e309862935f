"""The compressor: predicts alpha from the frames of the front end and compresses them at any rate.

Inference and training share this code, under the reference's parameter names (``cif_subsampler.alpha_fn``).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ofa.model.cif import CifPlan, apply_cif, plan_cif
from s3prl_ofa.model.convolution import Conv1d
from s3prl_ofa.model.packing import pad, spread
from s3prl_ofa.model.rate import mix

KERNEL = 5  # frames that the predictor's convolution spans


class AlphaPredictor(nn.Module):
    """Convolution over time, LayerNorm, ReLU, Linear, sigmoid: one alpha in (0, 1) per frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cnn = Conv1d(dim, dim, KERNEL, padding=KERNEL // 2)
        self.layer = nn.Sequential(nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, 1))

    def forward(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """From rows (frames of the batch, dim) to alpha (frames of the batch,) in float64.

        Each utterance is padded with zeros, so it does not see its neighbors in the batch.
        """
        layout, positions = spread(rows, lengths, gap=KERNEL // 2)
        hidden = self.cnn(layout.t()[None])[0].t()
        if positions is not None:
            hidden = hidden[positions]
        norm, _, linear = self.layer
        assert isinstance(norm, nn.LayerNorm) and isinstance(linear, nn.Linear)
        # Never in half precision, not even under autocast: rounding alpha would change the number of frames.
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        with torch.autocast(rows.device.type, enabled=False):
            gain, bias = norm.weight.to(dtype), norm.bias.to(dtype)
            hidden = F.layer_norm(hidden.to(dtype), norm.normalized_shape, gain, bias, norm.eps)
            logit = F.linear(F.relu(hidden), linear.weight.to(dtype), linear.bias.to(dtype))
        return torch.sigmoid(logit[:, 0].double())


class Compressor(nn.Module):
    """Alpha predictor, rate and continuous integrate-and-fire."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.alpha_fn = AlphaPredictor(dim)

    def alpha(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Alpha (batch, longest) in float64, zeros after each utterance's end.

        rows: (frames of the batch, dim). lengths: (batch,) on the CPU.
        """
        return pad(self.alpha_fn(rows, lengths), lengths)

    @staticmethod
    def uniform(alpha: Tensor, lengths: Tensor) -> Tensor:
        """Replaces each utterance's alpha (batch, longest) by its mean: the same number of frames, of equal length."""
        return (alpha.sum(1) / lengths)[:, None].expand_as(alpha)

    @staticmethod
    def plan(alpha: Tensor, lambd: Tensor, lengths: Tensor) -> CifPlan:
        """How alpha (batch, longest) compresses utterances of ``lengths`` (batch,) at ``lambd`` (batch,)."""
        return plan_cif(mix(alpha, lambd), lengths)

    @staticmethod
    def compress(rows: Tensor, plan: CifPlan) -> Tensor:
        """Rows (frames of the batch, dim) to (output frames of the batch, dim)."""
        return apply_cif(rows, plan)
