"""The transformer encoder of wav2vec 2.0, on rows: the frames of all utterances of a batch, one after the other."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ofa.model.config import ModelConfig
from s3prl_ofa.model.convolution import Conv2d
from s3prl_ofa.model.packing import pad, positions_of, spread, starts_of, unpad, valid_mask
from s3prl_ofa.model.products import apply_linear

# Attention is computed for groups of utterances, padded to the longest, which is at most this many times the shortest.
GROUP_RATIO = 1.3


class AttentionGroup:
    """Utterances of similar length whose attention is one call, and the places of their rows in the batch.

    rows: the places, or None where they follow each other and those of the group before.
    """

    def __init__(self, lengths: Tensor, members: Tensor, device: torch.device) -> None:
        self.lengths = lengths[members]
        starts = starts_of(lengths)[members]
        whole_batch = len(members) == len(lengths) and bool((members == torch.arange(len(lengths))).all())
        self.rows = None if whole_batch else positions_of(self.lengths, starts).to(device)
        ragged = int(self.lengths.min()) < int(self.lengths.max())
        # (utterances, 1 head, 1 query, keys): an utterance does not attend to keys beyond its end
        self.mask = valid_mask(self.lengths)[:, None, None].to(device) if ragged else None


def attention_groups(lengths: Tensor, device: torch.device) -> list[AttentionGroup]:
    """Splits utterances of ``lengths`` (batch,), a tensor on the CPU, into groups of similar length.

    On a CPU, where calls cost little, unequal utterances are groups of their own: without copies, padding and mask.
    """
    if device.type == "cpu" and int(lengths.min()) < int(lengths.max()):
        return [AttentionGroup(length, torch.zeros(1, dtype=torch.long), device) for length in lengths.split(1)]
    if int(lengths.max()) <= GROUP_RATIO * int(lengths.min()):
        return [AttentionGroup(lengths, torch.arange(len(lengths)), device)]
    order = torch.argsort(lengths)
    groups, begin = [], 0
    sorted_lengths = lengths[order].tolist()
    for index, length in enumerate(sorted_lengths):
        if length > GROUP_RATIO * sorted_lengths[begin]:
            groups.append(AttentionGroup(lengths, order[begin:index], device))
            begin = index
    return [*groups, AttentionGroup(lengths, order[begin:], device)]


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward blocks, each with a residual; LayerNorm after (Base) or before (Large) each."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.pre_norm = config.pre_norm
        self.gelu = config.activation == "gelu"
        self.qkv = nn.Linear(config.dim, 3 * config.dim)  # query, key and value in one product
        self.out = nn.Linear(config.dim, config.dim)
        self.fc1 = nn.Linear(config.dim, config.ffn_dim)
        self.fc2 = nn.Linear(config.ffn_dim, config.dim)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.final_norm = nn.LayerNorm(config.dim)

    def forward(self, rows: Tensor, groups: list[AttentionGroup]) -> Tensor:
        """Rows (frames of the batch, dim) to rows of the same shape."""
        if self.pre_norm:
            rows = rows + self.attend(self.attention_norm(rows), groups)
            return rows + self.feed_forward(self.final_norm(rows))
        rows = self.attention_norm(rows + self.attend(rows, groups))
        return self.final_norm(rows + self.feed_forward(rows))

    def feed_forward(self, rows: Tensor) -> Tensor:
        hidden = apply_linear(self.fc1, rows, gelu=self.gelu)
        return apply_linear(self.fc2, hidden if self.gelu else F.relu(hidden))

    def attend(self, rows: Tensor, groups: list[AttentionGroup]) -> Tensor:
        """Self-attention within each utterance."""
        qkv = apply_linear(self.qkv, rows)
        if groups[0].rows is None:
            parts = qkv.split([int(group.lengths.sum()) for group in groups])
            pieces = [self.attend_group(part, group) for part, group in zip(parts, groups, strict=True)]
            return apply_linear(self.out, pieces[0] if len(pieces) == 1 else torch.cat(pieces))
        attended = qkv.new_empty(rows.shape)  # under autocast its dtype is not that of the rows
        for group in groups:
            assert group.rows is not None  # as in the first
            attended = attended.index_copy(0, group.rows, self.attend_group(qkv[group.rows], group))
        return apply_linear(self.out, attended)

    def attend_group(self, qkv: Tensor, group: AttentionGroup) -> Tensor:
        """(frames of the group, 3 * dim) to (frames of the group, dim)."""
        padded = pad(qkv, group.lengths)
        batch, frames, width = padded.shape
        query, key, value = padded.view(batch, frames, 3, self.heads, width // 3 // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=group.mask)
        return unpad(attended.transpose(1, 2).reshape(batch, frames, width // 3), group.lengths)


class Encoder(nn.Module):
    """Positional convolution and transformer layers."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.pre_norm = config.pre_norm
        # A 2-D convolution of height 1, because torch then takes rows as they are (channels last), which makes it some
        # 1.5 times faster on a CPU than Conv1d.
        self.pos_conv = Conv2d(
            config.dim,
            config.dim,
            (1, config.pos_conv_kernel),
            padding=(0, config.pos_conv_kernel // 2),
            groups=config.pos_conv_groups,
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim)

    def positions(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """Positional information (frames of the batch, dim): a wide grouped convolution over time and a GELU."""
        layout, where = spread(rows, lengths, gap=self.pos_conv.kernel_size[1] // 2)
        # An even kernel gives one frame too many, the last one.
        convolved = self.pos_conv(layout[None, None].permute(0, 3, 1, 2))[0, :, 0].t()[: len(layout)]
        return F.gelu(convolved if where is None else convolved[where])

    def forward(self, rows: Tensor, lengths: Tensor, states: Sequence[int]) -> list[Tensor]:
        """The hidden states ``states``, rows each: k is the input of layer k, counted from 0, or the last output.

        rows: (frames of the batch, dim). lengths: (batch,) on the CPU.
        """
        rows = rows + self.positions(rows, lengths)
        if not self.pre_norm:
            rows = self.norm(rows)
        groups = attention_groups(lengths, rows.device)
        kept = {0: rows} if 0 in states else {}
        for number, layer in enumerate(self.layers[: max(states)], 1):
            rows = layer(rows, groups)
            if number in states:
                kept[number] = self.norm(rows) if self.pre_norm and number == len(self.layers) else rows
        return [kept[number] for number in states]
