"""The settings that once-for-all compression adds to fairseq's wav2vec 2.0, under the reference's names."""

from dataclasses import dataclass, field

from fairseq.criterions.wav2vec_criterion import Wav2VecCriterionConfig
from fairseq.dataclass import ChoiceEnum
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config
from fairseq.tasks.audio_pretraining import AudioPretrainingConfig
from omegaconf import II

from s3prl_ofa.pretrain.rates import DISTRIBUTIONS

VALID_LAMBDS = (0.0, 0.5, 1.0)


def _about(default, text: str):
    return field(default=default, metadata={"help": text})


@dataclass
class OFAModelConfig(Wav2Vec2Config):
    """fairseq's wav2vec 2.0 and the compressor before its projection (arXiv 2211.02332)."""

    subsample: ChoiceEnum(["none", "fixed", "cif"]) = _about(
        "none", "how frames are compressed: not at all, by average pooling, by continuous integrate-and-fire"
    )
    fixed_subsample_ratio: int = _about(2, "with subsample=fixed: 20 ms frames that become one")
    mixup: bool = _about(False, "draw a lambd for every forward pass in training; without it lambd is 1")
    mixup_distro: ChoiceEnum(list(DISTRIBUTIONS)) = _about("uniform", "how lambd is drawn")
    upper_lambd: float = _about(2.0, "with mixup_distro=both: the largest lambd; 0 trains at 20 ms throughout")
    lambd_per: ChoiceEnum(["batch", "utterance"]) = _about("batch", "one lambd for a batch, or one an utterance")
    target_ratio: float = _about(0.25, "output frames an input frame that the card loss asks for")
    card_loss: float = _about(0.0, "weight of the card loss: frames in the batch")
    seg_loss: float = _about(0.0, "weight of the seg loss: running sum of alpha at the guidance's boundaries")
    frame_loss: float = _about(0.0, "weight of the frame loss: alpha against the guidance's, frame by frame")


@dataclass
class OFATaskConfig(AudioPretrainingConfig):
    """fairseq's audio pretraining with guidance beside the waves."""

    alpha_root: str | None = _about(None, "folder of the guidance alpha, named as the manifest's files, with .pt")
    boundaries_root: str | None = _about(None, "folder of the guidance boundaries, named in the same way")
    bad_guidance: ChoiceEnum(["stop", "skip"]) = _about(
        "stop", "for a guidance file that is missing or damaged: stop, or train that utterance without guidance loss"
    )
    bad_audio: ChoiceEnum(["stop", "skip"]) = _about(
        "stop", "for audio that is missing, damaged or not 16 kHz mono: stop, or leave that utterance out of its batch"
    )
    valid_lambds: list[float] = field(
        default_factory=lambda: list(VALID_LAMBDS), metadata={"help": "the rates of validation"}
    )
    # Workers keep a copy of the dataset, and with it the epoch, from which crops are drawn: a new loader every epoch.
    reuse_dataloader: bool = False
    persistent_workers: bool = False
    cpu_bfloat16: bool = _about(False, "on a CPU, train with products in bfloat16; common.bf16 and amp are for GPUs")
    max_update: int = II("optimization.max_update")  # for the time left


@dataclass
class OFACriterionConfig(Wav2VecCriterionConfig):
    """fairseq's wav2vec loss. loss_weights: diversity, feature penalty, and with a compressor card, seg, frame (1)."""
