"""Features of a checkpoint from fairseq's wav2vec 2.0, with the compressor before its projection, as in pretraining."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from s3prl_ofa.checkpoint import Checkpoint
from s3prl_ofa.checkpoint.fairseq_format import fairseq_parts
from s3prl_ofa.errors import CheckpointError
from s3prl_ofa.model.waves import normalize_wave
from s3prl_ofa.pretrain.config import OFAModelConfig
from s3prl_ofa.pretrain.model import OFAPretrainingModel


@torch.no_grad()
def fairseq_features(
    checkpoint: Checkpoint, waves: Sequence[Tensor], lambds: Sequence[float]
) -> dict[float, list[Tensor]]:
    """The encoder's output (1, frames, dim) of each wave (samples,), by lambd.

    Raises CheckpointError for a model that fairseq cannot hold.
    """
    settings, _, weights = fairseq_parts(dataclasses.replace(checkpoint, model_cfg={}))
    known = {field.name for field in dataclasses.fields(OFAModelConfig)}
    model = OFAPretrainingModel(OFAModelConfig(**{key: value for key, value in settings.items() if key in known}))
    missing = model.load_state_dict(weights, strict=False).missing_keys
    if missing:
        raise CheckpointError(f"{checkpoint.path}: fairseq's model needs {', '.join(missing[:3])}, which it lacks")
    model.eval()
    found = {}
    for lambd in lambds:
        model.overwrite_lambd = lambd
        inputs = [normalize_wave(wave) if checkpoint.config.normalize else wave for wave in waves]
        found[lambd] = [model.extract_features(wave[None])["x"] for wave in inputs]
    return found
