"""``s3prl-ofa guidance ctm|textgrid|segment|check``: makes and checks the files from which alpha learns segments."""

import argparse
import functools
import hashlib
import importlib.util
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from s3prl_ofa.arguments.guidance import CLUSTERS, PERIOD_MS
from s3prl_ofa.device import AUTO, resolve_device
from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.output_folder import check_settings, locked_folder, write_settings

if TYPE_CHECKING:
    import numpy as np


def run(args: argparse.Namespace) -> int:
    """Runs the subcommand. Returns 1 if utterances were left out, missing or broken, else 0. Raises UsageError."""
    if args.jobs is not None and args.jobs < 1:
        raise UsageError(f"--jobs must be at least 1, found {args.jobs}")
    return {"ctm": ctm, "textgrid": textgrid, "segment": segment, "check": check}[args.what](args)


def jobs_of(args: argparse.Namespace, device: str = "cpu") -> int:
    if args.jobs is not None:
        return args.jobs
    return len(os.sched_getaffinity(0)) if device == "cpu" and hasattr(os, "sched_getaffinity") else 1


def ctm(args: argparse.Namespace) -> int:
    from s3prl_ofa.guidance.alignments import CtmIntervals, read_ctm, shared_names

    def read(entries):
        return CtmIntervals(read_ctm(args.ctm, {entry.stem for entry in entries}), shared_names(entries))

    return from_alignments(args, read, {"source": "ctm"})


def textgrid(args: argparse.Namespace) -> int:
    from s3prl_ofa.guidance.alignments import TextGridIntervals, find_textgrids, shared_names

    if importlib.util.find_spec("praatio") is None:
        raise UsageError("TextGrids need praatio, which is not installed: pip install 's3prl-ofa[guidance]'")
    if not args.textgrids.is_dir():
        raise UsageError(f"{args.textgrids}: no such folder; expected one with NAME.TextGrid files")

    def read(entries):
        return TextGridIntervals(args.textgrids, find_textgrids(args.textgrids), args.tier, shared_names(entries))

    return from_alignments(args, read, {"source": "textgrid", "tier": args.tier})


def from_alignments(args: argparse.Namespace, read: Callable[..., Any], settings: dict[str, Any]) -> int:
    """read: takes the manifests' entries and returns a function from an entry to its intervals."""
    from s3prl_ofa.guidance.alignments import FromAlignments
    from s3prl_ofa.guidance.layout import RESULTS, TEMPORARY, GuidanceError
    from s3prl_ofa.guidance.work import read_entries, write_all

    entries = read_entries(args.manifest)
    if args.longest is not None and args.longest < 1:
        raise UsageError(f"--longest must be at least 1 frame, found {args.longest}")
    silences = frozenset(args.silence_labels)
    settings |= {"silence": args.silence, "silence_labels": sorted(silences), "longest": args.longest}
    try:
        make = FromAlignments(read(entries), silences, args.silence == "merge", args.longest)
    except GuidanceError as error:
        raise UsageError(str(error)) from None
    with locked_folder(args.out, f"--out {args.out}", TEMPORARY):
        check_settings(args.out, settings, RESULTS, args.force)
        write_settings(args.out, settings)
        return write_all(entries, make, args.out, jobs_of(args), again=True, force=args.force)  # alignments change


def segment(args: argparse.Namespace) -> int:
    from s3prl_ofa.guidance.layout import RESULTS, TEMPORARY
    from s3prl_ofa.guidance.unsupervised import FromSpeech, make_penalty, sample_features
    from s3prl_ofa.guidance.work import read_entries, write_all

    check_segment_options(args)
    entries = read_entries(args.manifest)
    source, device = make_source(args)
    jobs = jobs_of(args, device)
    rate = {"period_ms": args.period_ms or PERIOD_MS} if args.penalty is None else {"penalty": args.penalty}
    settings = {"source": "segment", **source.describe(), "longest": args.longest, **rate}
    sample = functools.cache(lambda: sample_features(source, entries, args.seed, jobs))
    with locked_folder(args.out, f"--out {args.out}", TEMPORARY):
        check_settings(args.out, settings, RESULTS, args.force)  # before the slow part
        codes = codes_of(args, source, sample)
        settings["codes"] = hashlib.sha256(codes.tobytes()).hexdigest()
        earlier = check_settings(args.out, settings, RESULTS, args.force)
        if earlier is not None:
            settings["penalty"] = float(earlier["penalty"])
        elif args.penalty is None:
            settings["penalty"] = make_penalty(codes, sample(), args.longest, rate["period_ms"])
        write_settings(args.out, settings)
        make = FromSpeech(source, codes, settings["penalty"], args.longest)
        return write_all(entries, make, args.out, jobs, again=False, force=args.force)


def codes_of(args: argparse.Namespace, source: Any, sample: Callable[[], Any]) -> "np.ndarray":
    """The given codes, or those of an earlier run, else new ones, which are saved. Raises UsageError."""
    from s3prl_ofa.guidance.unsupervised import CODES, read_codes, train_codes, write_codes

    path = args.codes or args.out / CODES
    if args.codes is None and (args.force or not path.exists()):
        codes = train_codes([features for _, features in sample()], args.clusters or CLUSTERS, args.seed)
        write_codes(path, codes, source.describe())
        return codes
    codes = read_codes(path, source.describe())
    if args.clusters and args.clusters != len(codes):
        raise UsageError(f"{path} has {len(codes)} codes, not {args.clusters}; --force makes new ones")
    return codes


def check_segment_options(args: argparse.Namespace) -> None:
    for name in ("period_ms", "penalty"):
        value = getattr(args, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise UsageError(f"--{name.replace('_', '-')} must be a number above 0, found {value:g}")
    for name in ("clusters", "longest"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UsageError(f"--{name} must be at least 1, found {value}")
    if args.codes and args.clusters:
        raise UsageError("--clusters makes codes, --codes reads existing ones: give only one of them")
    if (args.layer is None) != (args.ckpt is None and args.upstream is None):
        raise UsageError("--layer is required with --ckpt or --upstream, and takes effect only there")


def make_source(args: argparse.Namespace) -> tuple[Any, str]:
    """The features, and the device that they are computed on. Raises UsageError, CheckpointError."""
    from s3prl_ofa.guidance.features import CheckpointHidden, Mfcc, UpstreamHidden

    if args.layer is None:
        if args.device not in (AUTO, "cpu"):
            raise UsageError(
                f"--device {args.device}: MFCCs are computed on the cpu; leave it out, or give --ckpt or --upstream"
            )
        return Mfcc(), "cpu"
    device = str(resolve_device(args.device))
    if args.upstream:
        return UpstreamHidden(args.upstream, args.ckpt, args.layer, device), device
    return CheckpointHidden(args.ckpt, args.layer, device), device


def check(args: argparse.Namespace) -> int:
    from s3prl_ofa.guidance.check import check as check_all
    from s3prl_ofa.guidance.layout import ALPHA, BOUNDARIES
    from s3prl_ofa.guidance.work import read_entries

    for root, names in ((args.root, (ALPHA, BOUNDARIES)), (args.against, (BOUNDARIES,))):
        for name in names if root else ():
            if not (root / name).is_dir():
                raise UsageError(f"{root / name}: no such folder; guidance has {ALPHA}/ and {BOUNDARIES}/")
    return check_all(args.root, read_entries(args.manifest), args.against, jobs_of(args))
