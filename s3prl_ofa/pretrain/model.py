"""fairseq's wav2vec 2.0 with a compressor before its projection, for pretraining.

    waves -> convolutions (20 ms frames) -> LayerNorm -> compressor -> projection -> masks -> encoder -> InfoNCE

Quantizer, encoder, convolutions and their weights are fairseq's; the compressor is the inference model's, under the
reference's names. After the compressor everything is in compressed time: masks, targets, negatives, codes. Padding
affects neither statistics nor losses: an utterance has the same frames in a batch as alone.
"""

import logging

import torch
import torch.nn.functional as F
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Model
from fairseq.modules import GradMultiply
from torch import Tensor, nn

from s3prl_ofa.checkpoint.fairseq_format import parse_conv_layers
from s3prl_ofa.errors import UsageError
from s3prl_ofa.model.compressor import Compressor
from s3prl_ofa.model.config import SAMPLE_RATE
from s3prl_ofa.model.convolution import use_exact_groups
from s3prl_ofa.model.packing import pad, positions_of, similar_groups, starts_of, unpad, valid_mask
from s3prl_ofa.model.rate import check_lambd, mix, solve_lambd, wanted_frames
from s3prl_ofa.pretrain.config import OFAModelConfig
from s3prl_ofa.pretrain.losses import cardinality_loss, frame_loss, segment_loss
from s3prl_ofa.pretrain.masking import draw_negatives, draw_spans, equalize_shares
from s3prl_ofa.pretrain.rates import draw_lambd

logger = logging.getLogger(__name__)

NORM_EPS = 1e-5
GROUP_RATIO = 1.5  # the longest of the utterances that are encoded together, relative to the shortest
# fairseq's settings of masking, negatives and inputs that are not supported here, with the only value accepted.
REQUIRED = {
    "quantize_input": False,
    "crop_seq_to_multiple": 1,
    "negatives_from_everywhere": False,
    "mask_selection": "static",
    "no_mask_overlap": False,
    "mask_dropout": 0.0,
    "mask_channel_before": False,
    "mask_channel_selection": "static",
    "no_mask_channel_overlap": False,
}
# Parts that a checkpoint of another kind may lack as a whole; they then start with new weights.
NEW_PARTS = ("cif_subsampler.", ("quantizer.", "project_q."), "final_proj.", "mask_emb")


class OFAPretrainingModel(Wav2Vec2Model):
    """wav2vec 2.0 trained at many frame periods at once (arXiv 2211.02332).

    ``overwrite_lambd`` (None, a number in [0, 2), or one per utterance) sets the rate of every forward pass, or else
    ``overwrite_frame_period_ms``, which works like ``frame_period_ms`` of the inference model. If both are None, lambd
    is drawn in training and 0 in evaluation. Raises UsageError for impossible settings.
    """

    def __init__(self, cfg: OFAModelConfig) -> None:
        for name, value in REQUIRED.items():
            if str(getattr(cfg, name)) != str(value):
                raise UsageError(f"model.{name} must be {value}, found {getattr(cfg, name)}, which is not supported")
        if cfg.fixed_subsample_ratio < 1:
            raise UsageError(f"model.fixed_subsample_ratio must be at least 1, found {cfg.fixed_subsample_ratio}")
        if not 0 <= cfg.upper_lambd <= 2:
            raise UsageError(f"model.upper_lambd must be from 0 to 2, found {cfg.upper_lambd}")
        try:
            # fairseq will evaluate this text as Python; only lists of numbers are let through
            self.conv_layers_spec = parse_conv_layers(cfg.conv_feature_layers)
        except ValueError as error:
            raise UsageError(f"model.conv_feature_layers {error}") from None
        super().__init__(cfg)
        use_exact_groups(self)
        self.cif_subsampler = Compressor(self.embed) if cfg.subsample == "cif" else None
        self.overwrite_lambd: float | Tensor | None = None
        self.overwrite_frame_period_ms: float | None = None

    # --- waves to frames ---

    def num_frames(self, samples: Tensor) -> Tensor:
        """Number of 20 ms frames (batch,) of ``samples`` samples (batch,)."""
        for _, kernel, stride in self.conv_layers_spec:
            samples = (samples - kernel) // stride + 1
        return samples

    def convolve(self, source: Tensor, samples: Tensor) -> Tensor:
        """(batch, frames, channels) from waves (batch, longest) of ``samples`` (batch,) samples.

        GroupNorm, which spans all of time, takes mean and variance from the utterance's frames without padding.
        """
        if self.cfg.extractor_mode != "default" or int(samples.min()) == source.shape[1]:
            return self.feature_extractor(source).transpose(1, 2)
        first, *others = self.feature_extractor.conv_layers
        conv, dropout, norm, activation = first
        hidden = dropout(conv(source.unsqueeze(1)))
        _, kernel, stride = self.conv_layers_spec[0]
        counts = ((samples - kernel) // stride + 1).to(hidden.device)
        hidden = activation(masked_group_norm(hidden, counts, norm))
        for layer in others:
            hidden = layer(hidden)
        return hidden.transpose(1, 2)

    # --- the rate ---

    def lambd_of(self, lambd: float | Tensor | None, batch: int) -> Tensor:
        """lambd (batch,) float64 on the CPU: ``lambd`` if given, else ``overwrite_lambd``, else drawn, 1 or 0."""
        lambd = self.overwrite_lambd if lambd is None else lambd
        if lambd is not None:
            return check_lambd(lambd, batch).cpu()
        if not self.training:
            return torch.zeros(batch, dtype=torch.float64)
        if not self.cfg.mixup:
            return torch.ones(batch, dtype=torch.float64)
        count = batch if str(self.cfg.lambd_per) == "utterance" else 1
        return draw_lambd(str(self.cfg.mixup_distro), count, self.cfg.upper_lambd).expand(batch)

    def compress(
        self, frames: Tensor, lengths: Tensor, samples: Tensor, lambd: float | Tensor | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Compresses frames (batch, longest, channels) of ``lengths`` (batch,), from waves of ``samples`` (batch,).

        Lengths and samples are on the CPU. Returns the compressed frames, their lengths (batch,) on the CPU, and with
        ``subsample: cif`` lambd (batch,), alpha and weights (batch, longest).
        """
        if str(self.cfg.subsample) == "none":
            return frames, lengths, {}
        rows = unpad(frames, lengths)
        if str(self.cfg.subsample) == "fixed":
            rows, compressed = average_pool(rows, lengths, self.cfg.fixed_subsample_ratio)
            return pad(rows, compressed), compressed, {}
        alpha = self.cif_subsampler.alpha(rows, lengths)
        if lambd is None and self.overwrite_frame_period_ms is not None:
            periods = torch.full(samples.shape, self.overwrite_frame_period_ms, dtype=torch.float64)
            wanted = wanted_frames(samples / SAMPLE_RATE, periods, lengths).to(alpha.device)
            lambd, _ = solve_lambd(wanted, alpha.detach().sum(1), lengths.to(alpha.device))
        lambd = self.lambd_of(lambd, len(lengths)).to(frames.device)
        plan = self.cif_subsampler.plan(alpha, lambd, lengths.to(frames.device))
        compressed = plan.lengths.cpu()
        weights = torch.where(valid_mask(lengths).to(alpha.device), mix(alpha, lambd), 0.0)
        rate = {"lambd": lambd, "alpha": alpha, "weights": weights}
        return pad(self.cif_subsampler.compress(rows, plan), compressed), compressed, rate

    # --- forward ---

    def forward(
        self,
        source: Tensor,
        padding_mask: Tensor | None = None,
        mask: bool = True,
        features_only: bool = False,
        layer: int | None = None,
        lambd: float | Tensor | None = None,
        guidance: dict[str, Tensor] | None = None,
        corpus_key: object = None,
    ) -> dict[str, Tensor | int | float | None]:
        """source: waves (batch, samples). padding_mask: (batch, samples), True on padding.

        With ``features_only`` the result has ``x`` (batch, frames, dim), ``padding_mask`` (batch, frames) or None,
        ``features`` (batch, frames, channels), ``layer_results`` as in fairseq, ``lengths`` and ``lambd``. Otherwise
        ``x`` holds the logits (1 + negatives, masked frames of the batch), with the true target first, and the losses
        are in the result too. layer: stop after this layer, counted from 0. guidance: see GuidedAudioDataset. Raises
        ValueError for an utterance without a frame.
        """
        samples = torch.full((len(source),), source.shape[1])
        if padding_mask is not None:
            samples = (~padding_mask.bool()).sum(1).cpu()
        lengths = self.num_frames(samples)
        if int(lengths.min()) < 1:
            raise ValueError(f"utterance {int(lengths.argmin())} has {int(samples.min())} samples, too few for a frame")
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.feature_grad_mult > 0):
            frames = self.convolve(source, samples)
        if self.feature_grad_mult not in (0, 1):
            frames = GradMultiply.apply(frames, self.feature_grad_mult)
        valid = valid_mask(lengths, frames.shape[1]).to(frames.device)
        features_pen = (frames.float().pow(2).mean(2) * valid).sum() / valid.sum()

        compressed, compressed_lengths, rate = self.compress(self.layer_norm(frames), lengths, samples, lambd)
        x = compressed if self.post_extract_proj is None else self.post_extract_proj(compressed)
        x = self.dropout_input(x)
        compressed = self.dropout_features(compressed)
        masked = None
        if mask:
            x, masked = self.mask_frames(x, compressed_lengths)
        ragged = int(compressed_lengths.min()) < x.shape[1]
        padding = ~valid_mask(compressed_lengths, x.shape[1]).to(x.device) if ragged else None
        if features_only:
            x, layer_results = self.encoder(x, padding_mask=padding, layer=layer, corpus_key=corpus_key)
            return {
                "x": x,
                "padding_mask": padding,
                "features": compressed,
                "layer_results": layer_results,
                "lengths": compressed_lengths.to(x.device),
                "lambd": rate.get("lambd"),
            }
        x = self.encode(x, compressed_lengths, corpus_key)
        result = self.contrast(x, compressed, masked, compressed_lengths)
        return {
            **result,
            "padding_mask": padding,
            "features_pen": features_pen,
            **self.guidance_losses(rate, lengths, guidance),
            **statistics(samples, lengths, compressed_lengths, rate),
        }

    def encode(self, x: Tensor, lengths: Tensor, corpus_key: object) -> Tensor:
        """The encoder's last hidden states (batch, longest, dim) of x (batch, longest, dim), zero on padding.

        Crops of one length have very different numbers of frames when each has its own rate, so they are encoded in
        groups of similar lengths (batch,).
        """
        groups, parts = similar_groups(lengths, GROUP_RATIO), []
        for members in groups:
            group, longest = lengths[members], int(lengths[members].max())
            padding = ~valid_mask(group).to(x.device) if int(group.min()) < longest else None
            encoded, _ = self.encoder(x[members.to(x.device), :longest], padding_mask=padding, corpus_key=corpus_key)
            parts.append(F.pad(encoded, (0, 0, 0, x.shape[1] - longest)))
        return torch.cat(parts)[torch.cat(groups).argsort().to(x.device)]

    def extract_features(
        self,
        source: Tensor,
        padding_mask: Tensor | None = None,
        mask: bool = False,
        layer: int | None = None,
        corpus_key: object = None,
    ) -> dict[str, Tensor | int | float | None]:
        """Hidden states: see ``forward`` with ``features_only``."""
        return self.forward(source, padding_mask, mask, features_only=True, layer=layer, corpus_key=corpus_key)

    def mask_frames(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """x (batch, frames, dim) with the mask embedding in random spans, and the mask (batch, frames)."""
        cfg = self.cfg
        masked = torch.zeros(x.shape[:2], dtype=torch.bool)
        if cfg.mask_prob > 0:
            masked = draw_spans(lengths, x.shape[1], cfg.mask_prob, cfg.mask_length)
            if cfg.require_same_masks:
                masked = equalize_shares(masked, lengths)
        masked = masked.to(x.device)
        x = torch.where(masked[..., None], self.mask_emb.to(x.dtype), x)
        if cfg.mask_channel_prob > 0:
            width = x.shape[2]
            channels = draw_spans(torch.full((len(x),), width), width, cfg.mask_channel_prob, cfg.mask_channel_length)
            x = x.masked_fill(channels.to(x.device)[:, None], 0.0)
        return x, masked

    def contrast(self, x: Tensor, features: Tensor, masked: Tensor | None, lengths: Tensor) -> dict[str, Tensor]:
        """Logits of masked frames against their quantized features and those of other masked frames.

        An utterance with a single masked frame has no negatives and gives no target. If masked is None, all frames are
        targets.
        """
        if masked is None:
            masked = valid_mask(lengths, x.shape[1]).to(x.device)
        masked = masked & (masked.sum(1, keepdim=True) >= 2)
        x, targets = self.final_proj(x[masked]), features[masked]
        result = {}
        if self.quantizer is not None and len(targets):
            quantized = self.quantizer(targets[None], produce_targets=False)
            targets = quantized["x"][0]
            result = {name: quantized[name] for name in ("prob_perplexity", "code_perplexity", "num_vars", "temp")}
            result["diversity"] = (quantized["num_vars"] - quantized["prob_perplexity"]) / quantized["num_vars"]
        elif self.quantizer is not None:
            targets = targets.new_zeros(0, self.project_q.in_features)
        targets = self.project_q(targets)
        drawn = draw_negatives(masked.sum(1).cpu(), self.n_negatives, self.cross_sample_negatives).to(x.device)
        negatives = targets[drawn]
        if self.codebook_negatives > 0 and len(targets):
            codes = self.quantizer.sample_from_codebook(len(targets), self.codebook_negatives)
            negatives = torch.cat([negatives, self.project_q(codes.transpose(0, 1))])
        if self.target_glu is not None:
            targets, negatives = self.target_glu(targets), self.target_glu(negatives)
        return {"x": self.compute_preds(x, targets, negatives), **result}

    def get_logits(self, net_output: dict) -> Tensor:
        """(masked frames, 1 + negatives)."""
        return net_output["x"].transpose(0, 1)

    def get_targets(self, sample: dict, net_output: dict, expand_steps: bool = True) -> Tensor:
        """(masked frames,) zeros: the true target comes first."""
        return torch.zeros(net_output["x"].shape[1], dtype=torch.long, device=net_output["x"].device)

    # --- other losses than InfoNCE ---

    @property
    def extra_loss_names(self) -> tuple[str, ...]:
        """Names of ``get_extra_losses``, in the order of the criterion's ``loss_weights``."""
        names = ("diversity", "features_pen")
        return (*names, "card", "seg", "frame") if self.cif_subsampler is not None else names

    def get_extra_losses(self, net_output: dict) -> list[Tensor | None]:
        return [net_output.get(name) for name in self.extra_loss_names]

    def guidance_losses(
        self, rate: dict[str, Tensor], lengths: Tensor, guidance: dict[str, Tensor] | None
    ) -> dict[str, Tensor]:
        """card, seg and frame, multiplied by the configuration's weights; losses of weight 0 are left out."""
        if not rate:
            return {}
        cfg, losses = self.cfg, {}
        if cfg.card_loss:
            lengths = lengths.to(rate["weights"].device)
            losses["card"] = cfg.card_loss * cardinality_loss(rate["weights"], lengths, cfg.target_ratio)
        if not guidance:
            return losses
        alpha = torch.where(guidance["guided"][:, None], rate["alpha"], 0.0)
        if cfg.seg_loss and "boundaries" in guidance:
            losses["seg"] = cfg.seg_loss * segment_loss(alpha, guidance["boundaries"], guidance["first_part"])
        if cfg.frame_loss and "pseudo_alpha" in guidance:
            losses["frame"] = cfg.frame_loss * frame_loss(alpha, guidance["pseudo_alpha"].to(alpha.dtype))
        return losses

    # --- weights ---

    def upgrade_state_dict_named(self, state_dict: dict[str, Tensor], name: str) -> dict[str, Tensor]:
        """Completes a checkpoint that lacks whole parts of this model with this model's new weights.

        So training can start from a plain wav2vec 2.0, or from one without the parts that only pretraining needs. An
        incomplete part is left as it is; fairseq's strict loading then names what is missing.
        """
        super().upgrade_state_dict_named(state_dict, name)
        prefix = f"{name}." if name else ""
        weights = self.state_dict()
        for part in NEW_PARTS:
            starts = tuple(prefix + start for start in (part if isinstance(part, tuple) else (part,)))
            missing = {prefix + key: value for key, value in weights.items() if (prefix + key).startswith(starts)}
            if missing and not any(key.startswith(starts) for key in state_dict):
                logger.info("the checkpoint has no %s: starting with new weights", " and ".join(starts))
                state_dict.update({key: value.clone() for key, value in missing.items()})
        return state_dict


def masked_group_norm(hidden: Tensor, counts: Tensor, norm: nn.GroupNorm) -> Tensor:
    """GroupNorm of hidden (batch, channels, time), one channel per group, over the first ``counts`` (batch,) steps."""
    valid = valid_mask(counts, hidden.shape[2])[:, None]
    counts = counts[:, None, None]
    wide = hidden.float()
    mean = (wide * valid).sum(2, keepdim=True) / counts
    centered = wide - mean
    variance = (centered.square() * valid).sum(2, keepdim=True) / counts
    normed = centered * torch.rsqrt(variance + NORM_EPS)
    return (normed * norm.weight.float()[:, None] + norm.bias.float()[:, None]).type_as(hidden)


def average_pool(rows: Tensor, lengths: Tensor, ratio: int) -> tuple[Tensor, Tensor]:
    """Means of every ``ratio`` rows (frames of the batch, channels); an utterance's last mean may have fewer rows.

    lengths: (batch,) on the CPU. Returns the means and their number per utterance (batch,).
    """
    pooled = -(-lengths // ratio)
    within = positions_of(lengths, torch.zeros_like(lengths))
    target = torch.repeat_interleave(starts_of(pooled), lengths) + within // ratio
    sizes = torch.bincount(target, minlength=int(pooled.sum()))
    target, sizes = target.to(rows.device), sizes.to(rows.device)
    sums = rows.new_zeros(len(sizes), rows.shape[1]).index_add(0, target, rows)
    return sums / sizes[:, None].to(rows.dtype), pooled


def statistics(samples: Tensor, lengths: Tensor, compressed: Tensor, rate: dict[str, Tensor]) -> dict[str, float]:
    """Sums over the batch, to log the frame period, mean alpha and mean lambd."""
    sums = {
        "samples": float(samples.sum()),
        "input_frames": float(lengths.sum()),
        "frames": float(compressed.sum()),
        "utterances": float(len(lengths)),
    }
    if rate:
        sums |= {"alpha_sum": float(rate["alpha"].detach().sum()), "lambd_sum": float(rate["lambd"].detach().sum())}
    return sums
