"""Counts what a run of ``extract`` has done, with the files that could not be used, and reports it."""

import dataclasses
import sys
import threading
from typing import Any

from s3prl_ofa.extract.inputs import Utterance
from s3prl_ofa.extract.store import ERRORS, Store
from s3prl_ofa.io.files import printable
from s3prl_ofa.output import tell

REPORTED = 10  # bad files listed at the end; errors.jsonl lists all


@dataclasses.dataclass
class Tally:
    """What was done in ``store``. period_ms: the frame period that was requested, if one was."""

    store: Store
    period_ms: float | None
    errors: list[tuple[Utterance, str]] = dataclasses.field(default_factory=list)
    done: int = 0
    unreached: int = 0  # utterances whose frame period is shorter than requested
    # errors of reading and of the model come from the main thread, those of writing from another; one at a time
    failing: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def finish(self, row: dict[str, Any]) -> None:
        """Records an utterance, by its row of the index; its files must be in place."""
        self.store.add(row)
        self.count(row)

    def count(self, row: dict[str, Any]) -> None:
        self.done += 1
        if self.period_ms is not None and row["frames"] > max(1, round(1000 * row["seconds"] / self.period_ms)):
            self.unreached += 1

    def fail(self, utterance: Utterance, reason: str) -> None:
        with self.failing:
            self.errors.append((utterance, reason))
            self.store.add_error(utterance, reason)

    def report(self, total: int, finished_before: int) -> None:
        """Prints to stderr what was done and which files could not be used."""
        done = f"{self.done} of {total} files extracted to {self.store.folder}, {finished_before} already done"
        tell(done, sys.stderr)
        if self.unreached:
            tell(
                f"{self.unreached} cannot reach {self.period_ms:g} ms and have lambd 1 "
                "(--allow-beyond-one goes further)",
                sys.stderr,
            )
        if self.errors:
            lines = [f"{len(self.errors)} could not be used (all in {self.store.folder / ERRORS}):"]
            lines += [f"  {printable(utterance.path)}: {reason}" for utterance, reason in self.errors[:REPORTED]]
            print("\n".join(lines), file=sys.stderr)
