"""Caches the output of the front end, which does not depend on the rate: another rate, or one that is being learned,
runs only the compressor and the encoder."""

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from s3prl_ofa.model.kernels import check_kernels
from s3prl_ofa.model.ofa import OFAWav2Vec2
from s3prl_ofa.superb.feature_cache.keys import model_key
from s3prl_ofa.superb.feature_cache.outputs import OutputCache
from s3prl_ofa.superb.feature_cache.section import Entry

ROWS = "rows"

Rows = tuple[Tensor, Tensor]  # (frames of all utterances, dim), and how many each has


class FrontEndCache(OutputCache[Rows]):
    """The normalized frames of one model's front end. folder, limit_gb: see Section."""

    def __init__(self, folder: str | os.PathLike, limit_gb: float, model: OFAWav2Vec2) -> None:
        super().__init__(folder, limit_gb, model_key(model) | {"part": "front end"}, {ROWS}, model.device)
        self.model, self.compute = model, model.front_end_rows

    def front_end_rows(self, waves: list[Tensor]) -> Rows:
        """In place of the model's own: see ``through``."""
        check_kernels(self.model)  # those of the encoder run even if the front end does not
        return self.through(waves, self.compute)

    def entry(self, output: Rows, row: int) -> Entry:
        rows, lengths = output
        return {ROWS: rows.split(lengths.tolist())[row].detach().cpu()}

    def join(self, entries: list[Entry], waves: Sequence[Tensor]) -> Rows:
        rows = [entry[ROWS] for entry in entries]
        return torch.cat(rows).to(self.device), torch.tensor(list(map(len, rows)))
