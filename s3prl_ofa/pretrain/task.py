"""fairseq's audio pretraining with guidance, reproducible random numbers, and validation at fixed rates."""

import hashlib
import os
from typing import Any

import torch
from fairseq import utils
from fairseq.data import data_utils
from fairseq.logging import metrics
from fairseq.tasks.audio_pretraining import AudioPretrainingTask
from fairseq_cli.train import should_stop_early

from s3prl_ofa.errors import UsageError
from s3prl_ofa.guidance.layout import read_manifest
from s3prl_ofa.model.config import SAMPLE_RATE
from s3prl_ofa.model.rate import check_lambd
from s3prl_ofa.pretrain.config import OFATaskConfig
from s3prl_ofa.pretrain.dataset import GuidedAudioDataset

# fairseq's settings for other recipes than wav2vec 2.0, with the only value accepted.
REQUIRED = {"labels": None, "binarized_dataset": False, "multi_corpus_keys": None, "precompute_mask_config": None}


class OFAPretrainingTask(AudioPretrainingTask):
    """Pretraining at many rates.

    lambd, masks, negatives, dropout and layerdrop depend on the seed, the update, the micro-batch and the rank; crops
    depend on the seed, the epoch and the utterance.
    """

    cfg: OFATaskConfig

    def __init__(self, cfg: OFATaskConfig) -> None:
        super().__init__(cfg)
        self.update, self.micro_batch = -1, 0
        self.loss_names: tuple[str, ...] | None = None

    def load_dataset(self, split: str, task_cfg: OFATaskConfig | None = None, **kwargs: Any) -> None:
        """Raises GuidanceError, AudioError for unusable files, UsageError for an invalid manifest or setting."""
        cfg = task_cfg or self.cfg
        for name, value in REQUIRED.items():
            if getattr(cfg, name) != value:
                raise UsageError(f"task.{name} must be {value}, found {getattr(cfg, name)}, which is not supported")
        if not len(cfg.valid_lambds):
            raise UsageError("task.valid_lambds must have at least one rate, found none")
        manifest = os.path.join(utils.split_paths(cfg.data)[0], f"{split}.tsv")
        try:
            check_lambd(list(cfg.valid_lambds), len(cfg.valid_lambds))
            read_manifest(manifest)  # names the invalid line, which fairseq does not
        except ValueError as error:
            raise UsageError(str(error)) from None
        self.datasets[split] = GuidedAudioDataset(
            manifest,
            sample_rate=cfg.sample_rate,
            max_sample_size=cfg.max_sample_size,
            min_sample_size=cfg.min_sample_size,
            pad=cfg.enable_padding,
            normalize=cfg.normalize,
            num_buckets=0,
            alpha_root=cfg.alpha_root,
            boundaries_root=cfg.boundaries_root,
            bad_guidance=str(cfg.bad_guidance),
            bad_audio=str(cfg.bad_audio),
            crop_seed=cfg.seed,
        )
        if not len(self.datasets[split]):
            raise UsageError(
                f"{manifest}: no utterance of at least task.min_sample_size samples; give a smaller one, or other audio"
            )

    def can_reuse_epoch_itr(self, dataset) -> bool:
        """False, because a reused iterator makes different batches each time, and validations must be the same.

        Training gets a new one in every epoch, with the epoch's number, from which the batches are drawn.
        """
        return False

    def get_checkpoint_dict(self) -> dict[str, dict[str, Any]]:
        """Adds how long validation has not improved (for checkpoint.patience), which fairseq does not save."""
        return {type(self).__name__: dict(vars(should_stop_early))}

    def set_checkpoint_dict(self, state: dict[str, Any]) -> None:
        vars(should_stop_early).update(state)

    def build_model(self, model_cfg, from_checkpoint=False):
        model = super().build_model(model_cfg, from_checkpoint)
        self.loss_names = model.extra_loss_names
        return model

    def build_criterion(self, cfg, from_checkpoint=False):
        """Checks the loss weights before training starts; fairseq builds the model first."""
        criterion = super().build_criterion(cfg, from_checkpoint)
        if self.loss_names is not None:
            criterion.fit_loss_weights(self.loss_names)
        return criterion

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        self.micro_batch = 0 if update_num != self.update else self.micro_batch + 1
        self.update = update_num
        seed = mixed_seed(self.cfg.seed, update_num, self.micro_batch, rank())
        utils.set_torch_seed(seed)
        bfloat16 = self.cfg.cpu_bfloat16 and sample["net_input"]["source"].device.type == "cpu"
        # fairseq's layerdrop uses numpy's generator
        with data_utils.numpy_seed(seed), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def valid_step(self, sample, model, criterion):
        """Loss over all ``valid_lambds``; the names of what is logged for each end in ``_lambd0.5`` and so on."""
        inner = model
        while hasattr(inner, "module"):  # fairseq's distributed wrappers
            inner = inner.module
        if getattr(inner, "cif_subsampler", None) is None:
            return self.valid_step_at(sample, model, criterion, None)
        total, size, logged = 0.0, 0, {}
        for lambd in self.cfg.valid_lambds:
            loss, sample_size, log = self.valid_step_at(sample, model, criterion, float(lambd))
            total, size = total + loss, size + sample_size
            logged |= {f"{key}_lambd{lambd:g}": value for key, value in log.items()}
            for key in ("loss", "sample_size", "nsentences", "ntokens"):
                logged[key] = logged.get(key, 0) + log[key]
        return total, size, logged

    def valid_step_at(self, sample, model, criterion, lambd: float | None):
        """Validates at one rate. Masks and negatives depend on the utterances; training's generator is untouched."""
        sample = {**sample, "net_input": {**sample["net_input"], "lambd": lambd}}
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with torch.random.fork_rng(devices=devices):
            utils.set_torch_seed(mixed_seed(self.cfg.seed, *sample["id"].tolist()))
            return super().valid_step(sample, model, criterion)

    def reduce_metrics(self, logging_outputs, criterion) -> None:
        """Also logs, in training, the speed in hours of audio per hour and the remaining time."""
        super().reduce_metrics(logging_outputs, criterion)
        if not criterion.training:
            return
        samples = float(sum(log.get("samples", 0) for log in logging_outputs))
        metrics.log_speed("hours_per_hour", samples / SAMPLE_RATE, round=1)
        if self.cfg.max_update:
            left = max(0, self.cfg.max_update - self.update)
            metrics.log_derived("hours_left", lambda meters: hours(left, meters))


def hours(updates: int, meters) -> float:
    """Hours for this many updates at the mean speed that fairseq has measured (updates per second)."""
    speed = meters["ups"].avg if "ups" in meters else 0.0
    return round(updates / speed / 3600, 2) if speed else float("nan")


def rank() -> int:
    """The rank of this process."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def mixed_seed(*numbers: int) -> int:
    """A seed from several numbers; if one of them changes, every bit may change."""
    digest = hashlib.blake2s(repr(numbers).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little")
