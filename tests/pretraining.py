"""Shared by the tests of pretraining: tiny settings, a small corpus with guidance, runs of the command."""

import copy
import os
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import torch
import yaml

from s3prl_ofa.guidance import layout

SAMPLE_RATE = 16_000  # Hz
# The golden checkpoint's shape, with dropout, layer dropout and a fast temperature schedule, so that a resumed run
# that restores one of them wrongly differs.
TINY: dict[str, dict[str, Any]] = {
    "common": {"log_format": "json", "log_interval": 1, "seed": 3, "cpu": True},
    "checkpoint": {"save_interval_updates": 5, "no_epoch_checkpoints": True},
    "task": {
        "_name": "audio_pretraining",
        "data": "???",
        "max_sample_size": 14_000,
        "min_sample_size": 2_000,
        "normalize": False,
    },
    "dataset": {"num_workers": 0, "batch_size": 2, "validate_interval": 1000, "required_batch_size_multiple": 1},
    "criterion": {"_name": "wav2vec", "infonce": True, "loss_weights": [0.1, 10, 1, 1, 1]},
    "optimization": {"max_update": 2, "lr": [0.001], "update_freq": [1]},
    "optimizer": {"_name": "adam", "adam_betas": "(0.9,0.98)", "adam_eps": 1e-6, "weight_decay": 0.01},
    "lr_scheduler": {"_name": "polynomial_decay", "warmup_updates": 4, "total_num_update": 100},
    "model": {
        "_name": "wav2vec2",
        "conv_feature_layers": "[(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32, 2, 2)] * 2",
        "encoder_layers": 2,
        "encoder_embed_dim": 32,
        "encoder_ffn_embed_dim": 64,
        "encoder_attention_heads": 4,
        "conv_pos": 16,
        "conv_pos_groups": 4,
        "final_dim": 16,
        "quantize_targets": True,
        "latent_vars": 8,
        "latent_groups": 2,
        "latent_temp": [2.0, 0.5, 0.9],
        "num_negatives": 10,
        "dropout_input": 0.1,
        "dropout_features": 0.1,
        "encoder_layerdrop": 0.3,
        "feature_grad_mult": 0.1,
        "subsample": "cif",
        "mixup": True,
        "mixup_distro": "uniform",
        "seg_loss": 0.05,
        "frame_loss": 0.5,
    },
}


def write_config(path: pathlib.Path, **sections: dict[str, Any]) -> pathlib.Path:
    """TINY as a yaml file, with ``sections`` changed; a value of None removes its key."""
    config = copy.deepcopy(TINY)
    for name, values in sections.items():
        merged = config.setdefault(name, {}) | values
        config[name] = {key: value for key, value in merged.items() if value is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def tiny_model(seed: int = 0, **settings: Any):
    """The plugin's model with TINY's settings, changed by ``settings``."""
    from s3prl_ofa.pretrain.config import OFAModelConfig
    from s3prl_ofa.pretrain.model import OFAPretrainingModel

    values = {**TINY["model"], **settings}
    values.pop("_name")
    torch.manual_seed(seed)
    return OFAPretrainingModel(OFAModelConfig(**values))


def speechlike(samples: int, seed: int) -> np.ndarray:
    """float32 (samples,): noise whose color and loudness change about every tenth of a second."""
    random = np.random.default_rng(seed)
    parts, left = [], samples
    while left > 0:
        length = min(left, int(random.integers(800, 2400)))
        tone = np.sin(np.arange(length) * random.uniform(0.03, 1.5))
        parts.append(random.uniform(0.02, 0.2) * (tone + random.uniform(0.1, 1) * random.standard_normal(length)))
        left -= length
    return np.concatenate(parts).astype(np.float32)


def random_boundaries(frames: int, seed: int) -> torch.Tensor:
    """Boundaries of segments of 2 to 8 frames, to the last frame."""
    ends = np.cumsum(np.random.default_rng(seed).integers(2, 9, frames))
    return torch.tensor([*ends[ends < frames], frames])


def make_corpus(folder: pathlib.Path, train: int = 16, valid: int = 3) -> pathlib.Path:
    """``folder/data`` with manifests of utterances of 0.4 to 1.4 s, ``folder/guidance`` with their segments."""
    (folder / "data").mkdir(parents=True)
    seed = 0
    for split, count in {"train": train, "valid": valid}.items():
        lines = [str(folder / "audio")]
        for number in range(count):
            seed += 1
            samples = int(np.random.default_rng(seed).integers(6_400, 22_400))
            relative = f"{split}/v1.2/utterance{number}.flac"
            path = folder / "audio" / relative
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, speechlike(samples, seed), SAMPLE_RATE)
            frames = layout.num_frames(samples)
            layout.write(folder / "guidance", relative, random_boundaries(frames, seed), frames)
            lines.append(f"{relative}\t{samples}")
        (folder / "data" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def corpus_settings(corpus: pathlib.Path, out: pathlib.Path) -> list[str]:
    return [f"data={corpus / 'data'}", f"guidance={corpus / 'guidance'}", f"out={out}"]


def run_here(arguments: Sequence[object]) -> int:
    """``s3prl-ofa pretrain`` in this process. Returns its exit status. fairseq keeps the best score in a function."""
    from fairseq import checkpoint_utils
    from fairseq.logging import metrics

    from s3prl_ofa import cli

    vars(checkpoint_utils.save_checkpoint).pop("best", None)
    metrics.reset()
    return cli.main(["pretrain", *map(str, arguments)])


def start(arguments: Sequence[object], log: pathlib.Path, module: Sequence[str] = ("s3prl_ofa", "pretrain")):
    """Starts the command in a new process group, with its output in ``log``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *module, *map(str, arguments)]
    with log.open("w") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )


def read_checkpoint(path: pathlib.Path) -> dict[str, Any]:
    return torch.load(path, map_location="cpu", weights_only=True)


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """The places where two nested structures of dicts, lists and tensors differ in any bit."""
    if isinstance(one, torch.Tensor):
        return [] if torch.equal(one, other) else [where]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [f"{where}: keys"]
        return [text for key in one for text in differences(one[key], other[key], f"{where}.{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(other):
            return [f"{where}: length"]
        return [
            text for i, pair in enumerate(zip(one, other, strict=True)) for text in differences(*pair, f"{where}.{i}")
        ]
    return [] if one == other else [f"{where}: {one!r} and {other!r}"]
