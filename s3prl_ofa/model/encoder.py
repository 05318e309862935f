"""The transformer encoder of wav2vec 2.0, on rows: the frames of all utterances of a batch, one after the other."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s3prl_ofa.model.attention import Attention, PaddedAttention
from s3prl_ofa.model.config import ModelConfig
from s3prl_ofa.model.convolution import Conv2d
from s3prl_ofa.model.packing import spread
from s3prl_ofa.model.products import apply_linear


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

    def forward(self, rows: Tensor, attention: Attention | PaddedAttention) -> Tensor:
        """Rows (frames of the batch, dim), or (batch, frames, dim) with their attention, to the same shape."""
        if self.pre_norm:
            rows = rows + self.attend(self.attention_norm(rows), attention)
            return rows + self.feed_forward(self.final_norm(rows))
        rows = self.attention_norm(rows + self.attend(rows, attention))
        return self.final_norm(rows + self.feed_forward(rows))

    def attend(self, rows: Tensor, attention: Attention | PaddedAttention) -> Tensor:
        """Self-attention within each utterance."""
        return apply_linear(self.out, attention.attend(apply_linear(self.qkv, rows), self.heads))

    def feed_forward(self, rows: Tensor) -> Tensor:
        hidden = apply_linear(self.fc1, rows, gelu=self.gelu)
        return apply_linear(self.fc2, hidden if self.gelu else F.relu(hidden))


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
        """The hidden states numbered ``states``, each as rows: k is the input of layer k, from 0, or the last output.

        rows: (frames of the batch, dim). lengths: (batch,) on the CPU.
        """
        return self.transform(rows + self.positions(rows, lengths), Attention(lengths, rows.device), states)

    def transform(self, rows: Tensor, attention: Attention | PaddedAttention, states: Sequence[int]) -> list[Tensor]:
        """The hidden states of ``forward``, from rows to which positions were added; also for a padded batch."""
        if not self.pre_norm:
            rows = self.norm(rows)
        kept = {0: rows} if 0 in states else {}
        for number, layer in enumerate(self.layers[: max(states)], 1):
            rows = layer(rows, attention)
            if number in states:
                kept[number] = self.norm(rows) if self.pre_norm and number == len(self.layers) else rows
        return [kept[number] for number in states]
