"""``s3prl-ofa predict EXPERIMENT AUDIO...``: what a trained task says about new audio, a line of JSON per file."""

import argparse
import contextlib
import hashlib
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from s3prl_ofa.errors import UsageError
from s3prl_ofa.extract.command import check_rate
from s3prl_ofa.extract.inputs import Utterance, find_utterances, make_batches, with_seconds
from s3prl_ofa.extract.pipeline import read_ahead
from s3prl_ofa.extract.store import append_line, read_rows
from s3prl_ofa.io.audio import SAMPLE_RATE, AudioError, load_audio
from s3prl_ofa.io.files import atomic_write, printable
from s3prl_ofa.io.output_folder import check_settings, locked_folder, remove_results, write_settings
from s3prl_ofa.output import tell
from s3prl_ofa.progress import Progress
from s3prl_ofa.superb.predict.experiment import Experiment, opened

ROWS = "predictions.jsonl"


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, or 1 if some files could not be used. Raises UsageError and CheckpointError."""
    if not args.batch_seconds > 0:
        raise UsageError(f"--batch-seconds must be a number above 0, found {args.batch_seconds:g}")
    rate = check_rate(args) if args.lambd is not None or args.frame_period_ms is not None else {}
    utterances = find_utterances(args.audio)
    with opened(args.experiment, rate, args.ckpt, args.device) as experiment, contextlib.ExitStack() as stack:
        finished: dict[str, dict[str, Any]] = {}
        if args.out is not None:
            finished = stack.enter_context(results(args.out, experiment, args.force))
        todo = [one for one in utterances if not is_finished(one, finished.get(one.name))]
        errors: list[tuple[Utterance, str]] = []
        left = list(with_seconds(utterances, todo, "", lambda one, reason: errors.append((one, reason))))
        done = 0
        for row in predictions(experiment, left, args.batch_seconds, errors):
            done += 1
            if args.out is None:
                print(json.dumps(row), flush=True)
            else:
                append_line(args.out / ROWS, row)
    if args.out is not None:
        before = len(utterances) - len(todo)
        tell(f"{done} of {len(utterances)} files predicted in {args.out / ROWS}, {before} already done", sys.stderr)
    for utterance, reason in errors:
        print(f"{printable(utterance.path)}: {reason}", file=sys.stderr)
    return 1 if errors else 0


def is_finished(utterance: Utterance, row: dict[str, Any] | None) -> bool:
    """Whether there is a row of this very file."""
    return row is not None and (row["size"], row["mtime_ns"]) == (utterance.size, utterance.mtime_ns)


@contextlib.contextmanager
def results(out: pathlib.Path, experiment: Experiment, force: bool) -> Iterator[dict[str, dict[str, Any]]]:
    """Locks the folder and yields the rows of earlier runs by name.

    Raises UsageError if they are of another checkpoint or rate; with ``force`` they are removed.
    """
    with experiment.checkpoint.open("rb") as file:
        settings = {"rate": experiment.rate, "checkpoint": hashlib.file_digest(file, "sha256").hexdigest()}
    with locked_folder(out, f"--out {out}", ()):
        if force:
            remove_results(out, (ROWS,))
        if check_settings(out, settings, (ROWS,)) is None:
            write_settings(out, settings)
        rows = read_rows(out / ROWS)
        atomic_write(out / ROWS, "".join(json.dumps(row) + "\n" for row in rows.values()))  # no unfinished line
        yield rows


def predictions(
    experiment: Experiment,
    utterances: list[tuple[Utterance, float]],
    batch_seconds: float,
    errors: list[tuple[Utterance, str]],
) -> Iterator[dict[str, Any]]:
    """Yields a row for each (utterance, seconds) pair; those that cannot be used go to ``errors`` with the reason."""
    shortest = experiment.runner.upstream.model.model.config.receptive_field

    def load(item: tuple[Utterance, float]) -> np.ndarray:
        wave = load_audio(item[0].path)
        if len(wave) < shortest:
            raise AudioError(f"too short: {len(wave)} samples at {SAMPLE_RATE} Hz, at least {shortest} are needed")
        return wave

    total = sum(seconds for _, seconds in utterances)
    batches = read_ahead(load, make_batches(utterances, batch_seconds))
    with Progress(seconds=total, desc="predict") as bar, contextlib.closing(batches):
        for batch, waves in batches:
            readable = []
            for (utterance, _), wave in zip(batch, waves, strict=True):
                try:
                    readable.append((utterance, wave.result()))
                except AudioError as error:
                    errors.append((utterance, str(error)))
            rows = experiment.predict([wave for _, wave in readable]) if readable else []
            for (utterance, wave), row in zip(readable, rows, strict=True):
                audio = {"audio": str(utterance.path), "seconds": round(len(wave) / SAMPLE_RATE, 3)}
                about = {"size": utterance.size, "mtime_ns": utterance.mtime_ns}
                yield {"name": utterance.name, **audio, **row, **about}
            bar.heard(sum(seconds for _, seconds in batch))
