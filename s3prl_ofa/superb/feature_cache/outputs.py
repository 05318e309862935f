"""Caches what a model, or a part of it, returns for a batch, by utterance."""

import abc
import math
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from s3prl_ofa.device import now
from s3prl_ofa.superb.feature_cache.keys import digest_of
from s3prl_ofa.superb.feature_cache.section import Entry, Section

Output = TypeVar("Output")


class OutputCache(Section, Generic[Output]):
    """Outputs on one device. folder, limit_gb, key, names: see Section.

    recompute: while it is set, whole batches are computed, so that their time can be measured.
    overhead: seconds of the last batch that were not spent in computing it; NaN unless all of it was computed.
    """

    def __init__(
        self, folder: str | os.PathLike, limit_gb: float, key: dict[str, Any], names: set[str], device: torch.device
    ) -> None:
        super().__init__(folder, limit_gb, key, names)
        self.device, self.recompute, self.overhead = device, False, math.nan

    @abc.abstractmethod
    def entry(self, output: Output, row: int) -> Entry:
        """One utterance of a batch, without its padding, on the CPU."""

    @abc.abstractmethod
    def join(self, entries: list[Entry], waves: Sequence[Tensor]) -> Output:
        """The batch of these utterances."""

    def through(self, waves: list[Tensor], compute: Callable[[list[Tensor]], Output]) -> Output:
        """The output of ``compute(waves)``, which is called with the missing utterances only.

        A batch of which nothing is cached, or any batch while ``recompute`` is set, is returned as computed. Otherwise
        some utterances were computed in other batches, which changes their features only by rounding.
        """
        start, self.overhead = now(self.device), math.nan
        paths = [self.path(wave) for wave in waves]
        entries: list[Any] = [None if self.recompute else self.read(path) for path in paths]
        missing = [index for index, entry in enumerate(entries) if entry is None]
        if missing:
            before = now(self.device)
            output = compute([waves[index] for index in missing])
            after = now(self.device)
            mixed = len(missing) < len(waves)
            for row, index in enumerate(missing):
                if mixed or not (self.full or paths[index].exists()):
                    entries[index] = self.entry(output, row)
                    self.store(paths[index], entries[index])
            if not mixed:
                self.overhead = now(self.device) - after + before - start
                return output
        return self.join(entries, waves)

    def path(self, wave: Tensor) -> pathlib.Path:
        return self.file(digest_of(wave, self.device))
