"""Caches the output of the front end, which does not depend on the rate: another rate, or one that is being learned,
runs only the compressor and the encoder."""

import os

import torch
from torch import Tensor

from s3prl_ofa.model.kernels import check_kernels
from s3prl_ofa.model.ofa import OFAWav2Vec2
from s3prl_ofa.superb.feature_cache.keys import digest_of, model_key
from s3prl_ofa.superb.feature_cache.section import Section

ROWS = "rows"


class FrontEndCache(Section):
    """The normalized frames of one model's front end. folder, limit_gb: see Section."""

    def __init__(self, folder: str | os.PathLike, limit_gb: float, model: OFAWav2Vec2) -> None:
        super().__init__(folder, limit_gb, model_key(model) | {"part": "front end"}, {ROWS})
        self.model, self.compute = model, model.front_end_rows
        self.recompute = False

    @property
    def overhead(self) -> float:
        """0 while the front end runs on every batch; NaN if its time is not in that of the model."""
        return 0.0 if self.recompute else torch.nan

    def front_end_rows(self, waves: list[Tensor]) -> tuple[Tensor, Tensor]:
        """What the model's own ``front_end_rows`` returns, which is called with the missing utterances only, or with
        all of them while ``recompute`` is set. Rows from other batches differ by rounding."""
        if self.recompute:
            return self.compute(waves)
        check_kernels(self.model)  # those of the encoder run even if the front end does not
        device = self.model.device
        paths = [self.file(digest_of(wave, device)) for wave in waves]
        entries = [self.read(path) for path in paths]
        missing = [index for index, entry in enumerate(entries) if entry is None]
        if missing:
            rows, lengths = self.compute([waves[index] for index in missing])
            for index, part in zip(missing, rows.detach().split(lengths.tolist()), strict=True):
                entries[index] = {ROWS: part}
                if not self.full and not paths[index].exists():
                    self.store(paths[index], {ROWS: part.cpu().clone()})
        parts = [entry[ROWS] for entry in entries if entry is not None]
        return torch.cat([part.to(device) for part in parts]), torch.tensor([len(part) for part in parts])
