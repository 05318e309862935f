"""Self-attention within each utterance of a batch whose frames lie end to end."""

import functools
import importlib.util
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from s3prl_ofa.model.packing import pad, positions_of, similar_groups, starts_of, unpad, valid_mask
from s3prl_ofa.model.products import differentiable

HAS_VARLEN = importlib.util.find_spec("torch.nn.attention.varlen") is not None  # not before torch 2.10
# Without variable-length attention, attention is computed for groups of utterances, padded to the longest, which is at
# most this many times the shortest.
GROUP_RATIO = 1.3


def uses_varlen(qkv: Tensor, head_dim: int) -> bool:
    """Whether torch's variable-length attention can be used: in 16 bits on a GPU that has FlashAttention."""
    if qkv.device.type != "cuda" or qkv.dtype.itemsize != 2 or not HAS_VARLEN:
        return False
    return head_dim % 8 == 0 and head_dim <= 256 and torch.cuda.get_device_capability(qkv.device) >= (8, 0)


def attend_varlen(qkv: Tensor, heads: int, bounds: Tensor, longest: int) -> Tensor:
    """(frames of the batch, 3 * dim) to (frames of the batch, dim) by torch's variable-length attention.

    bounds: (batch + 1,) int32, the first row of each utterance and the number of rows.
    """
    from torch.nn.attention.varlen import varlen_attn  # imports the compiler, which takes as long as all of torch

    query, key, value = qkv.unflatten(1, (3, heads, -1)).unbind(1)
    return cast(Tensor, varlen_attn(query, key, value, bounds, bounds, longest, longest)).flatten(1)


# Scores that are computed at once as products, and the most frames of an utterance: beyond, they leave the caches.
MAX_SCORES, MAX_FRAMES = 2**22, 2048


def uses_products(query: Tensor) -> bool:
    """Whether two products and a softmax are faster than torch's fused attention: query (batch, heads, frames, width).

    In bfloat16 on CPUs with instructions for it but without AMX, where the fused kernel computes in float32.
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or differentiable(query):
        return False
    in_bfloat16 = torch.cpu._is_avx512_bf16_supported() and not torch.cpu._is_amx_tile_supported()
    return in_bfloat16 and query.shape[2] <= MAX_FRAMES


def attend_by_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention without a mask: (batch, heads, frames, width) each, to the same shape."""
    heads = max(1, MAX_SCORES // query.shape[2] ** 2)
    rows = (states.flatten(0, 1).split(heads) for states in (query * query.shape[3] ** -0.5, key, value))
    parts = [torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(2), v) for q, k, v in zip(*rows, strict=True)]
    return (parts[0] if len(parts) == 1 else torch.cat(parts)).view(query.shape)


class AttentionGroup:
    """Utterances of similar length whose attention is one call, and the positions of their rows in the batch.

    rows: the positions, or None if the rows are consecutive and follow those of the previous group.
    """

    def __init__(self, lengths: Tensor, members: Tensor, device: torch.device) -> None:
        self.lengths = lengths[members]
        starts = starts_of(lengths)[members]
        whole_batch = len(members) == len(lengths) and bool((members == torch.arange(len(lengths))).all())
        self.rows = None if whole_batch else positions_of(self.lengths, starts).to(device)
        ragged = int(self.lengths.min()) < int(self.lengths.max())
        # (utterances, 1 head, 1 query, keys): an utterance does not attend to keys beyond its end
        self.mask = valid_mask(self.lengths)[:, None, None].to(device) if ragged else None

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """(frames of the group, 3 * dim) to (frames of the group, dim)."""
        padded = pad(qkv, self.lengths)
        batch, frames, width = padded.shape
        query, key, value = padded.view(batch, frames, 3, heads, width // 3 // heads).permute(2, 0, 3, 1, 4)
        if self.mask is None and uses_products(query):
            attended = attend_by_products(query, key, value)
        else:
            attended = F.scaled_dot_product_attention(query, key, value, attn_mask=self.mask)
        return unpad(attended.transpose(1, 2).reshape(batch, frames, width // 3), self.lengths)


def attention_groups(lengths: Tensor, device: torch.device) -> list[AttentionGroup]:
    """Splits utterances of ``lengths`` (batch,), a tensor on the CPU, into groups of similar length.

    On a CPU, where calls cost little, each utterance is its own group if lengths differ: no copies, padding or mask.
    """
    if device.type == "cpu" and int(lengths.min()) < int(lengths.max()):
        return [AttentionGroup(length, torch.zeros(1, dtype=torch.long), device) for length in lengths.split(1)]
    return [AttentionGroup(lengths, members, device) for members in similar_groups(lengths, GROUP_RATIO)]


class PaddedAttention:
    """Attention for a padded batch, in operations that can be exported. inside: (batch, frames), False on padding."""

    def __init__(self, inside: Tensor) -> None:
        self.bias = torch.where(inside, 0.0, float("-inf"))[:, None, None]

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """From queries, keys and values (batch, frames, 3 * dim) to (batch, frames, dim)."""
        query, key, value = qkv.unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)
        # torch's own attention branches on whether there is a single frame, which an exporter cannot know.
        scores = query @ key.transpose(2, 3) * query.shape[3] ** -0.5 + self.bias
        return (scores.softmax(3) @ value).transpose(1, 2).flatten(2)


class Attention:
    """Attention for one batch of utterances of ``lengths`` (batch,), a tensor on the CPU; all layers share it."""

    def __init__(self, lengths: Tensor, device: torch.device) -> None:
        self.lengths, self.device = lengths, device
        self.longest = int(lengths.max())

    @functools.cached_property
    def bounds(self) -> Tensor:
        """(batch + 1,) int32, on the device: the first row of each utterance, and the number of rows."""
        return F.pad(torch.cumsum(self.lengths, 0), (1, 0)).to(self.device, torch.int32, non_blocking=True)

    @functools.cached_property
    def groups(self) -> list[AttentionGroup]:
        return attention_groups(self.lengths, self.device)

    def attend(self, qkv: Tensor, heads: int) -> Tensor:
        """From queries, keys and values (frames of the batch, 3 * dim) to (frames of the batch, dim).

        On a GPU, utterances of different lengths are one call in 16 bits; float32, without such a kernel, uses groups.
        """
        width = qkv.shape[1] // 3
        if len(self.lengths) * self.longest > len(qkv) and uses_varlen(qkv, width // heads):
            return attend_varlen(qkv, heads, self.bounds, self.longest)
        if self.groups[0].rows is None:
            parts = qkv.split([int(group.lengths.sum()) for group in self.groups])
            pieces = [group.attend(part, heads) for part, group in zip(parts, self.groups, strict=True)]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        attended = qkv.new_empty(len(qkv), width)
        for group in self.groups:
            assert group.rows is not None  # as in the first
            attended.index_copy_(0, group.rows, group.attend(qkv[group.rows], heads))
        return attended
