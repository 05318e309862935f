"""Resumes a training as if it had never stopped.

S3PRL restarts the epoch with different random numbers, so that an interrupted run ends with another score. Here every
checkpoint also stores the states of the random number generators, at the start of the epoch and now, and how many
batches of the epoch are done. To resume, the loader is made from the first state, the batches that are done are
skipped, and the second state is restored.
"""

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import wrapt

from s3prl_ofa.errors import CheckpointError

KEY = "Position"  # in an S3PRL checkpoint, beside its Step and Epoch


class Position:
    """Where in the data a training is. Resumes from ``stored``, a ``state()`` from a checkpoint.

    Raises CheckpointError if ``stored`` is something else.
    """

    def __init__(self, stored: dict[str, Any] | None) -> None:
        self.stored = stored
        self.batches = 0  # of this epoch that have been started
        self.epoch_start = random_state()
        if stored is not None:
            check_position(stored, self.epoch_start)

    def state(self) -> dict[str, Any]:
        return {"batches": self.batches, "epoch_start": self.epoch_start, "now": random_state()}

    def watched_loader(self, make_loader: Callable[[], Any]) -> "WatchedLoader":
        """The loader of an epoch's training batches, whose progress is tracked from here on."""
        if self.stored is not None:
            set_random_state(self.stored["epoch_start"])
        self.epoch_start = random_state()
        return WatchedLoader(make_loader(), self)


class WatchedLoader(wrapt.ObjectProxy):
    """A loader of the batches of an epoch that are not done yet; a ``Position`` tracks its progress."""

    def __init__(self, loader: Any, position: Position) -> None:
        super().__init__(loader)
        self._self_position = position

    def __iter__(self) -> Iterator[Any]:
        position = self._self_position
        stored, position.stored = position.stored, None
        done = stored["batches"] if stored else 0
        for position.batches, batch in enumerate(self.__wrapped__, 1):
            if position.batches > done:
                yield batch
            elif position.batches == done:
                set_random_state(stored["now"])  # before the next batch is drawn


def check_position(stored: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises CheckpointError if ``stored`` cannot be resumed from. The random state is ``now`` before and after."""
    try:
        for name in ("epoch_start", "now"):
            set_random_state(stored[name])
        range(stored["batches"])
    except Exception as error:  # each generator rejects a bad state in its own way
        reason = f"{type(error).__name__}: {error}"[:200]
        raise CheckpointError(f"the checkpoint's {KEY} is not a random state to resume from ({reason})") from error
    finally:
        set_random_state(now)


def random_state() -> dict[str, Any]:
    """The states of all generators that S3PRL uses, as tensors and plain values, which torch.load considers safe."""
    name, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if len(state["cuda"]) == (torch.cuda.device_count() if torch.cuda.is_available() else 0):
        torch.cuda.set_rng_state_all(state["cuda"])
