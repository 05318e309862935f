"""``s3prl-ofa info CKPT``: what a checkpoint holds, and its frame periods on real audio."""

import argparse
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from s3prl_ofa.errors import UsageError
from s3prl_ofa.extract.inputs import Utterance, find_utterances
from s3prl_ofa.io.audio import SAMPLE_RATE, AudioError, load_audio
from s3prl_ofa.io.files import printable
from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS
from s3prl_ofa.resources import AUDIO

if TYPE_CHECKING:
    import numpy as np
    import torch

    from s3prl_ofa.model import OFAWav2Vec2

BUNDLED_AUDIO = AUDIO / "test"
LAMBDS = tuple(step / 10 for step in range(11))


def run(args: argparse.Namespace) -> int:
    """Prints what was found. Raises CheckpointError, and UsageError for audio that cannot be used."""
    from s3prl_ofa.checkpoint import load, read_checkpoint

    utterances = find_utterances(args.audio or [BUNDLED_AUDIO])
    checkpoint = read_checkpoint(args.ckpt)
    model = load(args.ckpt, args.device)
    waves = read_waves(utterances, model.config.receptive_field)
    result = {
        "checkpoint": str(args.ckpt),
        "format": checkpoint.format,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "config": model.config.to_dict(),
        "audio": ", ".join(args.audio) if args.audio else "bundled (synthetic speech)",
        "utterances": len(waves),
        "seconds": sum(map(len, waves)) / SAMPLE_RATE,
        **measure(model, waves),
    }
    print(json.dumps(result, indent=1) if args.json else as_text(result))
    return 0


def read_waves(utterances: Sequence[Utterance], shortest: int) -> list["np.ndarray"]:
    """The utterances' waves (samples,). Raises UsageError naming a file that cannot be read or has fewer than
    ``shortest`` samples."""
    waves = []
    for utterance in utterances:
        try:
            wave = load_audio(utterance.path)
        except AudioError as error:
            raise UsageError(f"{printable(utterance.path)}: {error}") from None
        if len(wave) < shortest:
            raise UsageError(
                f"{utterance.path}: too short: {len(wave)} samples at {SAMPLE_RATE} Hz, at least {shortest} are needed"
            )
        waves.append(wave)
    return waves


def measure(model: "OFAWav2Vec2", waves: list[Any], lambds: Sequence[float] = LAMBDS) -> dict[str, Any]:
    """Mean alpha over all frames, and a row per lambd with the mean, shortest and longest frame period of the waves.

    period = 20 / (1 - lambd (1 - mean alpha)) holds before the number of frames is rounded down; the table has the
    actual periods. A checkpoint without a compressor has only lambd 0.
    """
    import torch

    from s3prl_ofa.model.cost import macs_per_second

    samples = torch.tensor([len(wave) for wave in waves])
    input_lengths = torch.tensor([model.config.num_frames(length) for length in samples.tolist()])
    alphas = [] if model.compressor is None else [model.alpha([wave])[0][0].cpu() for wave in waves]
    table = []
    for lambd in lambds if alphas else (0.0,):
        frames = model.config.pooled(input_lengths)
        if lambd:
            frames = torch.stack([frames_at(alpha, lambd) for alpha in alphas])
        periods = 1000 * samples.double() / SAMPLE_RATE / frames
        table.append(
            {
                "lambd": lambd,
                "frame_period_ms": float(periods.mean()),
                "shortest_ms": float(periods.min()),
                "longest_ms": float(periods.max()),
                "macs_per_second": macs_per_second(model.config, samples, frames),
            }
        )
    mean_alpha = float(torch.cat(alphas).mean()) if alphas else None
    return {"mean_alpha": mean_alpha, "table": table}


def frames_at(alpha: "torch.Tensor", lambd: float) -> "torch.Tensor":
    """Number of frames of one utterance with alpha (20 ms frames,)."""
    from s3prl_ofa.model.compressor import Compressor

    lengths = alpha.new_tensor([len(alpha)]).long()
    return Compressor.plan(alpha[None], alpha.new_tensor([lambd]), lengths).lengths[0]


def as_text(result: dict[str, Any]) -> str:
    lines = [f"{key:12} {result[key]}" for key in ("checkpoint", "format")]
    lines.append(f"{'parameters':12} {result['parameters']:,}")
    lines.append(f"{'audio':12} {result['audio']}: {result['utterances']} utterances, {result['seconds']:.1f} s")
    only = f"none (no compressor: {MIN_FRAME_PERIOD_MS * result['config'].get('pooling', 1):g} ms only)"
    alpha = only if result["mean_alpha"] is None else f"{result['mean_alpha']:.3f}"
    lines += [f"{'mean alpha':12} {alpha}", "config"]
    lines += [f"  {key:16} {value}" for key, value in result["config"].items()]
    lines += ["", "lambd  frame period (ms)  shortest  longest  GMAC per second of audio"]
    for row in result["table"]:
        lines.append(
            f"{row['lambd']:5.1f}  {row['frame_period_ms']:17.1f}  {row['shortest_ms']:8.1f}  {row['longest_ms']:7.1f}"
            f"  {row['macs_per_second'] / 1e9:24.3f}"
        )
    return "\n".join(lines)
