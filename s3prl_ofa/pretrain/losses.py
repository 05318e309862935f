"""The three losses that teach alpha to follow a segmentation (the reference's card, seg and frame losses).

alpha: (batch, frames), zero after the end of each utterance. pseudo_alpha: (batch, frames), 1 / length over each
segment, so that it sums to 1 per segment. boundaries: (batch, segments), the 1-based index of each segment's last
frame, -1 after the last segment. The last two may be empty (if no utterance of the batch has guidance, or no segment
ends within its crop): the loss is then 0, not NaN.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cardinality_loss(weights: Tensor, lengths: Tensor, target_ratio: float) -> Tensor:
    """Distance of the batch's output frames per input frame from ``target_ratio``. lengths: (batch,)."""
    return (weights.sum() / lengths.sum() - target_ratio).abs()


def segment_loss(alpha: Tensor, boundaries: Tensor, first_part: Tensor | None = None) -> Tensor:
    """L1 distance of alpha's cumulative sum from 1, 2, 3, ... at the boundaries; mean over all slots with padding.

    A boundary beyond the last frame counts as one at the last frame. first_part: (batch,), the fraction of the first
    segment that a crop has left, in (0, 1]; the targets are then first_part, first_part + 1, ...
    """
    target = torch.arange(1, boundaries.shape[1] + 1, device=alpha.device, dtype=alpha.dtype)
    if first_part is not None:
        target = target - (1 - first_part[:, None].to(alpha.dtype))
    running = alpha.cumsum(1).gather(1, (boundaries - 1).clamp(0, alpha.shape[1] - 1))
    distance = (running - target).abs()
    return torch.where(boundaries > 0, distance, 0.0).sum() / max(1, boundaries.numel())


def frame_loss(alpha: Tensor, pseudo_alpha: Tensor) -> Tensor:
    """Mean L1 distance per frame; alpha is cut or zero-padded to the length of ``pseudo_alpha``."""
    alpha = F.pad(alpha, (0, pseudo_alpha.shape[1] - alpha.shape[1]))
    return F.l1_loss(alpha, pseudo_alpha, reduction="sum") / max(1, pseudo_alpha.numel())
