"""The three losses that teach alpha to follow a segmentation (the reference's card, seg and frame losses).

All take alpha (batch, frames), zero after each utterance's end. Guidance comes from a segmentation of the speech:
``pseudo_alpha`` (batch, frames) is 1 / length over each segment, so that it sums to 1 a segment, and ``boundaries``
(batch, segments) is the 1-based index of each segment's last frame, -1 after the last segment. Both may have no slot at
all (no utterance of the batch has guidance, or no segment ends within its crop): a loss is then 0, not NaN.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def cardinality_loss(weights: Tensor, lengths: Tensor, target_ratio: float) -> Tensor:
    """Distance of output frames an input frame, over the whole batch, from ``target_ratio``. lengths: (batch,)."""
    return (weights.sum() / lengths.sum() - target_ratio).abs()


def segment_loss(alpha: Tensor, boundaries: Tensor, first_part: Tensor | None = None) -> Tensor:
    """L1 distance of the running sum of alpha from 1, 2, 3, ... at the boundaries; mean over all slots, padding too.

    A boundary beyond the last frame counts as one at the last frame. ``first_part`` (batch,): of an utterance that was
    cropped, how much of its first segment is left, in (0, 1]; the sum is then wanted to be that, and one more each.
    """
    wanted = torch.arange(1, boundaries.shape[1] + 1, device=alpha.device, dtype=alpha.dtype)
    if first_part is not None:
        wanted = wanted - (1 - first_part[:, None].to(alpha.dtype))
    running = alpha.cumsum(1).gather(1, (boundaries - 1).clamp(0, alpha.shape[1] - 1))
    distance = (running - wanted).abs()
    return torch.where(boundaries > 0, distance, 0.0).sum() / max(1, boundaries.numel())


def frame_loss(alpha: Tensor, pseudo_alpha: Tensor) -> Tensor:
    """L1 distance, frame by frame; alpha is cut or filled with zeros to the length of ``pseudo_alpha``."""
    alpha = F.pad(alpha, (0, pseudo_alpha.shape[1] - alpha.shape[1]))
    return F.l1_loss(alpha, pseudo_alpha, reduction="sum") / max(1, pseudo_alpha.numel())
