"""``s3prl-ofa extract AUDIO... --ckpt C --out DIR``: writes the hidden states of many files at a chosen rate."""

import argparse
import concurrent.futures
import dataclasses
import errno
import logging
import math
import pathlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.contrib.logging import logging_redirect_tqdm

from s3prl_ofa.errors import UsageError
from s3prl_ofa.extract.inputs import Utterance, find_utterances, make_batches
from s3prl_ofa.extract.store import ERRORS, Store, open_store
from s3prl_ofa.extract.writers import FEATURES, Format, get_format
from s3prl_ofa.io.audio import SAMPLE_RATE, AudioError, duration, load_audio
from s3prl_ofa.io.files import printable
from s3prl_ofa.output import tell
from s3prl_ofa.progress import Progress

if TYPE_CHECKING:
    from s3prl_ofa.model import OFAWav2Vec2

logger = logging.getLogger(__name__)

REPORTED = 10  # bad files listed at the end; errors.jsonl lists all

Loaded = list[tuple[Utterance, np.ndarray]]


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, or 1 if some files could not be used. Raises UsageError, CheckpointError."""
    import torch

    from s3prl_ofa.checkpoint import load

    # All options are checked before the first file is read.
    output_format = get_format(args.format)
    rate = check_rate(args)
    if not (args.batch_seconds > 0 and math.isfinite(args.batch_seconds)):
        raise UsageError(f"--batch-seconds must be a number above 0, found {args.batch_seconds:g}")
    window = check_windows(args)
    utterances = find_utterances(args.audio)
    model = load(args.ckpt, device=args.device, dtype=getattr(torch, args.dtype))
    layers = check_layers(args.layer, model.config.layers)
    if model.compressor is None and rate not in ({"lambd": 0.0}, {"frame_period_ms": 20.0}):
        raise UsageError(f"{args.ckpt} has no compressor: only --lambd 0 (a frame period of 20 ms) is possible")
    settings = {
        **rate,
        "allow_beyond_one": args.allow_beyond_one,
        **window,
        "layer": args.layer if args.layer == "all" else layers if len(layers) > 1 else layers[0],
        "dtype": args.dtype,
        "format": args.format,
        # last, because it also changes with the dtype, and then the message should name the dtype
        "checkpoint": model.fingerprint(),
    }
    with open_store(args.out, settings, args.force) as store:
        options = {**rate, **window, "layers": layers, "allow_beyond_one": args.allow_beyond_one}
        extraction = Extraction(model, options, output_format, store)
        return extraction.run(utterances, args.batch_seconds)


def check_rate(args: argparse.Namespace) -> dict[str, float]:
    """The rate as the keyword argument of ``extract``. Raises UsageError when it is out of range."""
    from s3prl_ofa.model.rate import check_frame_period, check_lambd

    try:
        if args.frame_period_ms is not None:
            check_frame_period(args.frame_period_ms, 1)
            return {"frame_period_ms": args.frame_period_ms}
        lambd = 0.0 if args.lambd is None else args.lambd
        check_lambd(lambd, 1)
        return {"lambd": lambd}
    except ValueError as error:
        raise UsageError(str(error)) from None


def check_windows(args: argparse.Namespace) -> dict[str, float]:
    """The windows as keyword arguments of ``extract``. Raises UsageError if they do not advance."""
    from s3prl_ofa.model.windows import OVERLAP_S, check_window

    if args.window_s is None:
        return {}
    window = {"window_s": args.window_s, "overlap_s": OVERLAP_S if args.overlap_s is None else args.overlap_s}
    try:
        check_window(**window)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return window


def check_layers(text: str | None, layers: int) -> list[int]:
    """The numbers of the hidden states that ``--layer`` names. Raises UsageError."""
    if text == "all":
        return list(range(layers + 1))
    numbers = [str(layers)] if text is None else text.split(",")
    if not all(number.isdecimal() and int(number) <= layers for number in numbers):
        raise UsageError(
            f"--layer must be a whole number from 0 to {layers}, several such as 2,4, or all; found {text}"
        )
    return [int(number) for number in numbers]


@dataclasses.dataclass
class Extraction:
    """One run: what to compute, where to write it, and what went wrong."""

    model: "OFAWav2Vec2"
    options: dict[str, Any]  # of the model's extract
    output_format: Format
    store: Store
    errors: list[tuple[Utterance, str]] = dataclasses.field(default_factory=list)
    done: int = 0
    unreached: int = 0  # utterances whose frame period is shorter than requested

    def run(self, utterances: list[Utterance], batch_seconds: float) -> int:
        """Extracts what is not finished yet; returns the exit status."""
        # For all first: if another file's features have the name of one, nothing may be done.
        todo = [utterance for utterance in utterances if not self.store.is_finished(utterance)]
        batches = make_batches(self.durations(list(self.writable(utterances, todo))), batch_seconds)
        total = sum(seconds for batch in batches for _, seconds in batch)
        # The model would warn about unreached periods in every batch; one count at the end is clearer.
        logging.getLogger("s3prl_ofa.model").setLevel(logging.ERROR)
        try:
            with logging_redirect_tqdm(), Progress(seconds=total, desc="extract") as bar:
                for seconds, loaded in self.loaded(batches):
                    self.extract(loaded)
                    bar.heard(seconds)
        finally:
            logging.getLogger("s3prl_ofa.model").setLevel(logging.NOTSET)
        self.report(len(utterances), len(utterances) - len(todo))
        return 1 if self.errors else 0

    def writable(self, utterances: list[Utterance], todo: list[Utterance]) -> Iterator[Utterance]:
        """Yields those of ``todo`` whose output is not also the folder of another output; the rest fail."""
        folders = {parent for utterance in utterances for parent in pathlib.PurePosixPath(utterance.name).parents}
        for utterance in todo:
            name = f"{utterance.name}{self.output_format.suffix}"
            if pathlib.PurePosixPath(name) in folders:
                self.fail(utterance, f"its output would be named {name}, like a folder of other audio; rename one")
            else:
                yield utterance

    def durations(self, utterances: list[Utterance]) -> Iterator[tuple[Utterance, float]]:
        """Yields utterances with their seconds; those that cannot be opened become errors."""
        for utterance in Progress(utterances, desc="headers", leave=False, unit="file"):
            try:
                yield utterance, duration(utterance.path)
            except AudioError as error:
                self.fail(utterance, str(error))

    def loaded(self, batches: list[list[tuple[Utterance, float]]]) -> Iterator[tuple[float, Loaded]]:
        """Yields (seconds, waves) per batch; the next batch is read while the model works on the current one."""
        with concurrent.futures.ThreadPoolExecutor(1) as executor:
            waiting = [executor.submit(self.load, batch) for batch in batches[:1]]
            for index, batch in enumerate(batches):
                loaded = waiting.pop().result()
                waiting = [executor.submit(self.load, following) for following in batches[index + 1 : index + 2]]
                yield sum(seconds for _, seconds in batch), loaded

    def load(self, batch: list[tuple[Utterance, float]]) -> Loaded:
        waves = []
        shortest = self.model.config.receptive_field
        for utterance, _ in batch:
            try:
                wave = load_audio(utterance.path)
                if len(wave) < shortest:
                    raise AudioError(
                        f"too short: {len(wave)} samples at {SAMPLE_RATE} Hz, at least {shortest} are needed"
                    )
                waves.append((utterance, wave))
            except AudioError as error:
                self.fail(utterance, str(error))
        return waves

    def extract(self, loaded: Loaded) -> None:
        """Runs the model on a batch and writes its output. The utterances of a failed batch are retried one by one."""
        if not loaded:
            return
        waves = [wave for _, wave in loaded]
        out = None
        try:
            out = self.model.extract(waves, **self.options)
        except (ValueError, RuntimeError, MemoryError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
        if out is None and len(loaded) == 1:
            self.fail(loaded[0][0], reason)
            return
        if out is None:
            # Outside the except block, because the exception keeps the failed batch's activations in memory.
            logger.info("a batch of %d failed (%s); retrying one by one", len(loaded), reason)
            for pair in loaded:
                self.extract([pair])
            return
        for index, (utterance, wave) in enumerate(loaded):
            frames = int(out.lengths[index])
            states = [as_array(state[index, :frames]) for state in out.hidden_states]
            features = np.stack(states) if len(states) > 1 else states[0]
            if not np.isfinite(features).all():
                self.fail(utterance, "its features hold NaN or infinite values; are the weights too large for --dtype?")
                continue
            times = out.times[index, :frames].cpu().numpy()
            self.write(utterance, features, times, len(wave) / SAMPLE_RATE, float(out.lambd[index]))

    def write(
        self, utterance: Utterance, features: np.ndarray, times: np.ndarray, seconds: float, lambd: float
    ) -> None:
        name = f"{utterance.name}{self.output_format.suffix}"
        try:
            self.output_format.write(self.store.folder, f"{FEATURES}/{name}", features, times)
        except OSError as error:
            # Of the errors of writing, only these concern a single file.
            if error.errno == errno.ENAMETOOLONG:
                self.fail(utterance, "its name is too long for an output file")
            elif error.errno in (errno.EEXIST, errno.EISDIR, errno.ENOTDIR):
                self.fail(utterance, f"its output cannot be named {name}: {error.strerror}")
            else:
                raise
            return
        frames = len(times)
        self.store.add(
            {
                "name": utterance.name,
                "file": f"{FEATURES}/{name}",
                "frames": frames,
                "seconds": seconds,
                "lambd": lambd,
                "frame_period_ms": 1000 * seconds / frames,
                "audio": str(utterance.path),
                "size": utterance.size,
                "mtime_ns": utterance.mtime_ns,
            }
        )
        self.done += 1
        period_ms = self.options.get("frame_period_ms")
        if period_ms is not None and frames > max(1, round(1000 * seconds / period_ms)):
            self.unreached += 1

    def fail(self, utterance: Utterance, reason: str) -> None:
        self.errors.append((utterance, reason))
        self.store.add_error(utterance, reason)

    def report(self, total: int, finished_before: int) -> None:
        """Prints to stderr what was done and which files could not be used."""
        done = f"{self.done} of {total} files extracted to {self.store.folder}, {finished_before} already done"
        tell(done, sys.stderr)
        if self.unreached:
            tell(
                f"{self.unreached} cannot reach {self.options['frame_period_ms']:g} ms and have lambd 1 "
                "(--allow-beyond-one goes further)",
                sys.stderr,
            )
        if self.errors:
            lines = [f"{len(self.errors)} could not be used (all in {self.store.folder / ERRORS}):"]
            lines += [f"  {printable(utterance.path)}: {reason}" for utterance, reason in self.errors[:REPORTED]]
            print("\n".join(lines), file=sys.stderr)


def as_array(state: Any) -> np.ndarray:
    """A hidden state (frames, dim) as float32 or float16; numpy has no bfloat16."""
    import torch

    state = state.float() if state.dtype == torch.bfloat16 else state
    return state.cpu().numpy()
