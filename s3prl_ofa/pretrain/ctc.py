"""Fine-tuning with CTC at a fixed rate: fairseq's model, task and criterion on a once-for-all wav2vec 2.0."""

import contextlib
import functools
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fairseq.data import AddTargetDataset, data_utils
from fairseq.models.wav2vec.wav2vec2_asr import Wav2Vec2CtcConfig, Wav2VecCtc
from fairseq.tasks import audio_finetuning
from fairseq.tasks.audio_finetuning import AudioFinetuningTask
from torch import nn

from s3prl_ofa.checkpoint.safe_loading import patched_attributes
from s3prl_ofa.errors import UsageError
from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS
from s3prl_ofa.model.rate import check_frame_period, check_lambd
from s3prl_ofa.pretrain.config import setting
from s3prl_ofa.pretrain.dataset import relative_path
from s3prl_ofa.pretrain.model import OFAPretrainingModel
from s3prl_ofa.pretrain.task import mixed_seed, rank


@dataclass
class OFACtcConfig(Wav2Vec2CtcConfig):
    """fairseq's CTC model at a rate; without lambd and frame_period_ms the frame period is 20 ms."""

    lambd: float | None = setting(None, "rate in training and validation: 0 (20 ms per frame) to below 2")
    frame_period_ms: float | None = setting(None, "mean frame period of every utterance instead, 20 or more")


class OFACtcModel(Wav2VecCtc):
    """A linear layer on the encoder's output, at the same rate in training and validation.

    Raises UsageError for an impossible rate, or if waves are not normalized as in pretraining.
    """

    @classmethod
    def build_model(cls, cfg: OFACtcConfig, task: "OFAFinetuningTask") -> "OFACtcModel":
        if cfg.lambd is not None and cfg.frame_period_ms is not None:
            raise UsageError("model.lambd and model.frame_period_ms are both given; expected one of them")
        try:
            check_lambd(cfg.lambd or 0.0, 1)
            check_frame_period(MIN_FRAME_PERIOD_MS if cfg.frame_period_ms is None else cfg.frame_period_ms, 1)
        except ValueError as error:
            raise UsageError(f"model.{error}") from None
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # fairseq prints the model
                model = super().build_model(cfg, task)
        except AssertionError:
            other = "false" if cfg.normalize else "true"
            raise UsageError(f"{cfg.w2v_path} was pretrained with task.normalize={other}; give it here too") from None
        encoder = model.w2v_encoder.w2v_model
        compresses = isinstance(encoder, OFAPretrainingModel) and encoder.cif_subsampler is not None
        if not compresses and (cfg.lambd or cfg.frame_period_ms):
            raise UsageError(f"{cfg.w2v_path} has no compressor; expected a once-for-all checkpoint, or model.lambd=0")
        if compresses:
            encoder.overwrite_lambd, encoder.overwrite_frame_period_ms = cfg.lambd or 0.0, cfg.frame_period_ms
        return model


class NamedUtterances(AddTargetDataset):
    """fairseq's waves and labels, with the name of each utterance in its batch, for messages."""

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = super().collater(samples)
        if batch:
            batch["names"] = [relative_path(self.dataset, index) for index in batch["id"].tolist()]
        return batch


class OFAFinetuningTask(AudioFinetuningTask):
    """fairseq's fine-tuning, but it resumes bit for bit and stops at labels that CTC cannot align."""

    def load_dataset(self, split: str, *args: Any, **kwargs: Any) -> None:
        with patched_attributes(audio_finetuning, AddTargetDataset=NamedUtterances):
            super().load_dataset(split, *args, **kwargs)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        # fairseq's layerdrop uses numpy's generator
        with data_utils.numpy_seed(mixed_seed(self.cfg.seed, update_num, rank())), feasible(model, sample):
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def valid_step(self, sample, model, criterion):
        with feasible(model, sample):
            return super().valid_step(sample, model, criterion)


@contextlib.contextmanager
def feasible(model: nn.Module, sample: dict[str, Any]) -> Iterator[None]:
    """Checks every output of the model: CTC needs a frame for each label, and one between two equal labels.

    Raises ValueError naming the utterance. fairseq would train on an infinite loss, or with zero_infinity silently
    leave the utterance out.
    """
    with model.register_forward_hook(functools.partial(check_frames, sample)):
        yield


def check_frames(sample: dict[str, Any], model: nn.Module, inputs: tuple, output: dict[str, Any]) -> None:
    frames = [len(output["encoder_out"])] * len(sample["id"])
    if output["padding_mask"] is not None:
        frames = (~output["padding_mask"]).sum(1).tolist()
    targets = sample["target"].tolist()
    for name, count, target, length in zip(
        sample["names"], frames, targets, sample["target_lengths"].tolist(), strict=True
    ):
        labels = target[:length]
        needed = length + sum(first == second for first, second in itertools.pairwise(labels))
        if count < needed:
            raise ValueError(
                f"{name} has {count} frames, but CTC needs {needed} for its {length} labels; give a lower "
                "model.lambd or a shorter model.frame_period_ms, or leave it out of the manifest"
            )
