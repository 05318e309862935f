"""``s3prl-ofa extract AUDIO... --ckpt C --out DIR``: writes the hidden states of many files at a chosen rate."""

import argparse
import math
import sys
from typing import Any

from s3prl_ofa.errors import UsageError
from s3prl_ofa.extract.extraction import Extraction
from s3prl_ofa.extract.inputs import find_utterances, with_seconds
from s3prl_ofa.extract.shards import ATTEMPTS, run_shards, shard_slots
from s3prl_ofa.extract.store import open_store
from s3prl_ofa.extract.tally import Tally
from s3prl_ofa.extract.writers import get_format

ALL, WEIGHTED = "all", "weighted"  # of --layer


def run(args: argparse.Namespace) -> int:
    """Returns the exit status: 0, or 1 if some files could not be used. Raises UsageError, CheckpointError."""
    from s3prl_ofa.checkpoint import load

    # All options are checked before the first file is read.
    output_format = get_format(args.format)
    rate = check_rate(args)
    if not (args.batch_seconds > 0 and math.isfinite(args.batch_seconds)):
        raise UsageError(f"--batch-seconds must be a number above 0, found {args.batch_seconds:g}")
    window = check_windows(args)
    utterances = find_utterances(args.audio)
    slots = shard_slots(args)
    # shards load it themselves, on devices that this machine may not have
    model = load(args.ckpt, device=args.device if slots is None else "cpu", dtype=args.dtype)
    if args.dtype == "auto":  # it differs between machines, and a folder must not mix dtypes
        args.dtype = str(model.feature_norm.weight.dtype).removeprefix("torch.")
    layers = check_layers(args.layer, model.config.layers)
    mix = check_weights(args, model.config.layers + 1)
    period_ms = model.config.frame_period_ms
    if model.compressor is None and rate not in ({"lambd": 0.0}, {"frame_period_ms": period_ms}):
        raise UsageError(
            f"{args.ckpt} has no compressor: only --lambd 0 (a frame period of {period_ms:g} ms) is possible"
        )
    settings = {
        **rate,
        "allow_beyond_one": args.allow_beyond_one,
        "window_s": window.get("window_s"),  # here and when older folders have none: without windows
        "overlap_s": window.get("overlap_s"),
        "layer": args.layer if args.layer in (ALL, WEIGHTED) else layers if len(layers) > 1 else layers[0],
        **mix,
        "dtype": args.dtype,
        "format": args.format,
        # last, because it also changes with the dtype, and then the message should name the dtype
        "checkpoint": model.fingerprint(),
    }
    options = {**rate, **window, "layers": layers, "allow_beyond_one": args.allow_beyond_one}
    with open_store(args.out, settings, args.force, must_lock=slots is not None) as store:
        # For all files first: if one has the name of another file's features, nothing may be done.
        todo = [utterance for utterance in utterances if not store.is_finished(utterance)]
        store.forget(todo)
        tally = Tally(store, args.frame_period_ms)
        left = list(with_seconds(utterances, todo, output_format.suffix, tally.fail))
        dead = {}
        if slots is None:
            Extraction(model, options, output_format, tally, **mix).run(left, args.batch_seconds)
        else:
            given = {name: getattr(args, name) for name in ("ckpt", "dtype", "format", "batch_seconds")}
            work = {**given, "checkpoint": settings["checkpoint"], "options": options, "mix": mix}
            dead = run_shards(slots, left, work, tally)
        tally.report(len(utterances), len(utterances) - len(todo))
    for shard, reason in dead.items():
        print(f"shard {shard} ended {ATTEMPTS} times ({reason}); the same command resumes it", file=sys.stderr)
    return 1 if tally.errors or dead else 0


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
        if args.overlap_s is not None:
            raise UsageError("--overlap-s is for windows: give --window-s, too")
        return {}
    window = {"window_s": args.window_s, "overlap_s": OVERLAP_S if args.overlap_s is None else args.overlap_s}
    try:
        check_window(**window)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return window


def check_weights(args: argparse.Namespace, states: int) -> dict[str, Any]:
    """With ``--layer weighted`` the weights of the hidden states, as keyword arguments of Extraction."""
    from s3prl_ofa.checkpoint.experiment import read_layer_weights

    if (args.layer == WEIGHTED) != (args.weights is not None):
        raise UsageError("--layer weighted and --weights EXPERIMENT go together; give both or neither")
    if args.weights is None:
        return {}
    weights, normalize = read_layer_weights(args.weights, states)
    return {"layer_weights": weights, "normalize_layers": normalize}


def check_layers(text: str | None, layers: int) -> list[int]:
    """The numbers of the hidden states that ``--layer`` names. Raises UsageError."""
    if text in (ALL, WEIGHTED):
        return list(range(layers + 1))
    numbers = [str(layers)] if text is None else text.split(",")
    if not all(number.isdecimal() and int(number) <= layers for number in numbers):
        raise UsageError(
            f"--layer must be a whole number from 0 to {layers}, several such as 2,4, all or weighted; found {text}"
        )
    return [int(number) for number in numbers]
