"""Settings that once-for-all compression adds to fairseq's wav2vec 2.0, under the reference's names."""

from dataclasses import dataclass, field

from fairseq.criterions.wav2vec_criterion import Wav2VecCriterionConfig
from fairseq.dataclass import ChoiceEnum
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config
from fairseq.tasks.audio_pretraining import AudioPretrainingConfig
from omegaconf import II

from s3prl_ofa.pretrain.rates import DISTRIBUTIONS

VALID_LAMBDS = (0.0, 0.5, 1.0)


def setting(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass
class OFAModelConfig(Wav2Vec2Config):
    """fairseq's wav2vec 2.0 with a compressor before its projection (arXiv 2211.02332)."""

    subsample: ChoiceEnum(["none", "fixed", "cif"]) = setting(
        "none", "how to compress frames: not at all, by average pooling, or by continuous integrate-and-fire"
    )
    fixed_subsample_ratio: int = setting(2, "with subsample=fixed: number of 20 ms frames to average")
    mixup: bool = setting(False, "draw lambd in every training step; otherwise lambd is 1")
    mixup_distro: ChoiceEnum(list(DISTRIBUTIONS)) = setting("uniform", "distribution of lambd")
    upper_lambd: float = setting(2.0, "with mixup_distro=both: maximum lambd; 0 always trains at 20 ms")
    lambd_per: ChoiceEnum(["batch", "utterance"]) = setting("batch", "draw one lambd per batch or per utterance")
    target_ratio: float = setting(0.25, "output frames per input frame that the card loss aims for")
    card_loss: float = setting(0.0, "weight of the card loss: number of frames in the batch")
    seg_loss: float = setting(0.0, "weight of the seg loss: cumulative alpha at the guidance's boundaries")
    frame_loss: float = setting(0.0, "weight of the frame loss: alpha of each frame against the guidance")


@dataclass
class OFATaskConfig(AudioPretrainingConfig):
    """fairseq's audio pretraining with guidance in addition to the waves."""

    alpha_root: str | None = setting(
        None, "folder of the guidance's alpha files, named like the manifest's files, with suffix .pt"
    )
    boundaries_root: str | None = setting(None, "folder of the guidance's boundaries files, named the same way")
    bad_guidance: ChoiceEnum(["stop", "skip"]) = setting(
        "stop", "at a missing or damaged guidance file: stop, or train the utterance without guidance losses"
    )
    bad_audio: ChoiceEnum(["stop", "skip"]) = setting(
        "stop", "at audio that is missing, damaged or not 16 kHz mono: stop, or leave the utterance out of its batch"
    )
    valid_lambds: list[float] = field(
        default_factory=lambda: list(VALID_LAMBDS), metadata={"help": "validate at these rates"}
    )
    # A new loader in every epoch: workers keep a copy of the dataset, whose epoch determines the crops.
    reuse_dataloader: bool = False
    persistent_workers: bool = False
    cpu_bfloat16: bool = setting(
        False, "on a CPU, train with bfloat16 matrix products; common.bf16 and common.amp are for GPUs"
    )
    max_update: int = II("optimization.max_update")  # to log the remaining time


@dataclass
class OFACriterionConfig(Wav2VecCriterionConfig):
    """fairseq's wav2vec loss. loss_weights: diversity, features_pen and, with a compressor, card, seg and frame (1)."""
