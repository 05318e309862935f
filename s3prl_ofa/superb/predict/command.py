"""``s3prl-ofa predict EXPERIMENT AUDIO...``: what a trained task predicts for new audio, one line of JSON per file."""

import argparse
import contextlib
import itertools
import json
import pathlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from s3prl_ofa.errors import UsageError
from s3prl_ofa.extract.command import check_rate
from s3prl_ofa.extract.inputs import Utterance, find_utterances, with_seconds
from s3prl_ofa.extract.pipeline import loaded_batches
from s3prl_ofa.extract.store import append_line, is_of, read_rows
from s3prl_ofa.io.files import atomic_path, atomic_write, digest, printable
from s3prl_ofa.io.output_folder import check_settings, locked_folder, remove_results, write_settings
from s3prl_ofa.output import tell
from s3prl_ofa.superb.compat.task_names import S3PRL_DOWNSTREAM
from s3prl_ofa.superb.predict.experiment import Experiment, open_experiment
from s3prl_ofa.superb.predict.predictors import EMBEDDING
from s3prl_ofa.superb.predict.trials import Pair, read_trials, scores

ROWS, SCORES = "predictions.jsonl", "scores.jsonl"


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, or 1 if some files could not be used. Raises UsageError and CheckpointError."""
    if not args.batch_seconds > 0:
        raise UsageError(f"--batch-seconds must be a number above 0, found {args.batch_seconds:g}")
    rate = check_rate(args) if args.lambd is not None or args.frame_period_ms is not None else {}
    utterances = find_utterances(args.audio)
    pairs: Iterable[Pair] = itertools.combinations([one.name for one in utterances], 2)
    if args.trials is not None:
        pairs = read_trials(args.trials, utterances)
    with open_experiment(args.experiment, rate, args.ckpt, args.device) as experiment, contextlib.ExitStack() as stack:
        is_verification = experiment.task == S3PRL_DOWNSTREAM["asv"]
        if args.trials is not None and not is_verification:
            raise UsageError(f"--trials {args.trials} is for an experiment of asv, found {experiment.task}")
        finished: dict[str, dict[str, Any]] = {}
        if args.out is not None:
            finished = stack.enter_context(open_results(args.out, experiment, args.force))
        kept = {one.name: row for one in utterances if is_of(row := finished.get(one.name), one)}
        errors: dict[Utterance, str] = {}
        todo = [one for one in utterances if one.name not in kept]
        left = list(with_seconds(utterances, todo, "", errors.__setitem__))
        done, embeddings = 0, {name: row[EMBEDDING] for name, row in kept.items() if is_verification}
        for row in predictions(experiment, left, args.batch_seconds, errors):
            done += 1
            if is_verification:
                embeddings[row["name"]] = row[EMBEDDING]
            if args.out is None:
                print(json.dumps(row), flush=True)
            else:
                append_line(args.out / ROWS, row)
        if is_verification:
            write_scores(scores(embeddings, pairs), args.out)
    if args.out is not None:
        found = f"{done} of {len(utterances)} files predicted in {args.out / ROWS}, {len(kept)} already done"
        tell(found, sys.stderr)
    for utterance, reason in errors.items():
        print(f"{printable(utterance.path)}: {reason}", file=sys.stderr)
    return 1 if errors else 0


@contextlib.contextmanager
def open_results(out: pathlib.Path, experiment: Experiment, force: bool) -> Iterator[dict[str, dict[str, Any]]]:
    """Locks the folder and yields the rows of earlier runs by name.

    Raises UsageError if they are of another experiment, upstream or rate; with ``force`` they are removed.
    """
    upstream = experiment.runner.upstream.model.model.fingerprint()
    settings = {"rate": experiment.rate, "experiment": digest(experiment.checkpoint), "upstream": upstream}
    with locked_folder(out, f"--out {out}", ()):
        if check_settings(out, settings, (ROWS, SCORES), force) is None or force:
            remove_results(out, (ROWS, SCORES))
            write_settings(out, settings)
        rows = read_rows(out / ROWS)
        atomic_write(out / ROWS, "".join(json.dumps(row) + "\n" for row in rows.values()))  # no unfinished line
        yield rows


def write_scores(found: Iterator[dict[str, Any]], out: pathlib.Path | None) -> None:
    """Writes the scores of trials to ``out``, in the place of earlier ones, or prints them."""
    lines = (json.dumps(score) for score in found)
    if out is None:
        for line in lines:
            print(line)
        return
    with atomic_path(out / SCORES) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def predictions(
    experiment: Experiment,
    utterances: list[tuple[Utterance, float]],
    batch_seconds: float,
    errors: dict[Utterance, str],
) -> Iterator[dict[str, Any]]:
    """Yields a row for each (utterance, seconds) pair; the reasons why some cannot be used go to ``errors``."""
    lengths = dict(utterances)
    fail = errors.__setitem__
    batches = loaded_batches(utterances, batch_seconds, lambda one: experiment.load(one.path), fail, "predict")
    with contextlib.closing(batches):
        for loaded in batches:
            rows = experiment.predict([wave for _, wave in loaded]) if loaded else []
            for (utterance, _), row in zip(loaded, rows, strict=True):
                audio = {"audio": str(utterance.path), "seconds": round(lengths[utterance], 3)}
                about = {"size": utterance.size, "mtime_ns": utterance.mtime_ns}
                yield {"name": utterance.name, **audio, **row, **about}
