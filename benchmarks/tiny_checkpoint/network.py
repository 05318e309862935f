"""The networks that were tried, as fairseq's settings, and how to write one as a fairseq checkpoint.

    python benchmarks/tiny_checkpoint/network.py OUT.pt

writes the network with random weights, as a baseline for a trained one.
"""

import argparse
import pathlib

import torch
from fairseq.models.wav2vec import Wav2Vec2Config, Wav2Vec2Model
from torch import Tensor, nn

from s3prl_ofa.checkpoint.contents import Checkpoint
from s3prl_ofa.checkpoint.fairseq_format import read_config, write_state
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.model.cif import CifPlan, apply_cif, fixed_plan
from s3prl_ofa.model.packing import pad
from s3prl_ofa.pretrain.config import OFAModelConfig
from s3prl_ofa.pretrain.model import OFAPretrainingModel

CONVOLUTIONS = {
    # Narrow where there are many frames, so that most of the cost is in the encoder, where compression helps.
    "tapered": "[(96, 10, 5)] + [(96, 3, 2)] + [(128, 3, 2)] * 2 + [(192, 3, 2)] + [(192, 2, 2)] * 2",
    "even": "[(192, 10, 5)] + [(192, 3, 2)] * 4 + [(192, 2, 2)] * 2",
}
COMMON = {
    "extractor_mode": "default",
    "conv_pos": 64,
    "layer_norm_first": False,
    "final_dim": 128,
    "latent_groups": 2,
    "latent_vars": 64,
    "latent_temp": (2.0, 0.5, 0.9995),
    "quantize_targets": True,
    "num_negatives": 50,
    "mask_prob": 0.5,
    "mask_length": 8,
    "mask_channel_prob": 0.1,
    "mask_channel_length": 16,
    "dropout": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.0,
    "dropout_input": 0.0,
    "dropout_features": 0.0,
    "feature_grad_mult": 1.0,
}
COMPRESSION = {
    "subsample": "cif",
    "mixup": True,
    "lambd_per": "utterance",
    "require_same_masks": False,
}


class AveragePooling(nn.Module):
    """Instead of the compressor, the mean of every ``size`` frames: a model of one rate, without alpha to learn."""

    compress = staticmethod(apply_cif)

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def alpha(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """(batch, longest), the constant share of an output frame that each frame contributes."""
        return pad(torch.full((len(rows),), 1 / self.size, dtype=torch.float64, device=rows.device), lengths)

    def plan(self, alpha: Tensor, lambd: Tensor, lengths: Tensor) -> CifPlan:
        return fixed_plan(lengths, alpha.shape[1], self.size)


def compression_of(pooling: int) -> dict:
    """fairseq's settings for the compressor, or for average pooling by more than 1."""
    return COMPRESSION if pooling == 1 else {"subsample": "fixed", "fixed_subsample_ratio": pooling}


def pretraining_model(settings: dict) -> OFAPretrainingModel:
    """Our pretraining model, whose ``cif_subsampler`` always compresses."""
    model = OFAPretrainingModel(OFAModelConfig(**settings))
    if model.cif_subsampler is None:
        model.cif_subsampler = AveragePooling(model.cfg.fixed_subsample_ratio)
    return model


def settings_of(network: str, layers: int, width: int) -> dict:
    """fairseq's model settings for a network of CONVOLUTIONS and the size of its encoder.

    As in Base, heads have 64 dimensions and feed-forward layers are four times as wide as the encoder.
    """
    encoder = {
        "encoder_layers": layers,
        "encoder_embed_dim": width,
        "encoder_ffn_embed_dim": 4 * width,
        "encoder_attention_heads": width // 64,
        "conv_pos_groups": width // 32,  # 16-bit kernels of CPUs want a multiple of 16 channels per group
    }
    return {"conv_feature_layers": CONVOLUTIONS[network], **encoder, **COMMON}


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """--network, --layers and --width, by default those of the bundled checkpoint."""
    parser.add_argument("--network", choices=tuple(CONVOLUTIONS), default="tapered", help="the convolutions")
    parser.add_argument("--layers", type=int, default=6, help="of the encoder")
    parser.add_argument("--width", type=int, default=320, help="of the encoder, a multiple of 64")


def write_checkpoint(path: pathlib.Path, weights: dict[str, Tensor], settings: dict) -> None:
    """A plain wav2vec 2.0 checkpoint as fairseq writes it; fairseq, this package and S3PRL's converter read it."""
    model_cfg = {"_name": "wav2vec2", **settings, "latent_temp": list(settings["latent_temp"])}
    task_cfg = {"_name": "audio_pretraining", "data": "", "sample_rate": 16_000, "normalize": False}
    config = read_config(model_cfg, task_cfg, weights)
    state = write_state(Checkpoint(config, weights, model_cfg, task_cfg, "fairseq", path))
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    add_network_arguments(parser)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    settings = settings_of(args.network, args.layers, args.width)
    write_checkpoint(args.out, Wav2Vec2Model(Wav2Vec2Config(**settings)).state_dict(), settings)


if __name__ == "__main__":
    main()
