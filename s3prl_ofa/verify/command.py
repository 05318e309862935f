"""Runs the checks of ``s3prl-ofa verify`` and reports them as a page of text, and as JSON."""

import argparse
import math
import time
from typing import Any

import torch

from s3prl_ofa.checkpoint import checkpoint_path, load, read_checkpoint
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.extract.inputs import find_utterances
from s3prl_ofa.info import BUNDLED_AUDIO, read_waves
from s3prl_ofa.io.files import write_json
from s3prl_ofa.verify.checks import FAILED, PASSED, PUBLISHED_MS, Check, Subject, run_checks

MAX_UTTERANCES = 24  # evenly spaced over the files of --audio


def run(args: argparse.Namespace) -> int:
    """Prints the page; returns 1 if a check has failed. Raises UsageError for a missing checkpoint and for audio that
    cannot be used."""
    if not checkpoint_path(args.ckpt).exists():
        raise UsageError(f"{args.ckpt}: no such file; expected a checkpoint file or the folder of a Hugging Face model")
    start, checks, about = time.monotonic(), [], {"checkpoint": str(args.ckpt)}
    try:
        checkpoint = read_checkpoint(args.ckpt)
        model = load(args.ckpt)
    except CheckpointError as error:
        checks.append(Check("format", FAILED, str(error), {}))
    else:
        utterances = find_utterances([args.audio or BUNDLED_AUDIO])
        every = math.ceil(len(utterances) / MAX_UTTERANCES)
        waves = read_waves(utterances[::every], model.config.receptive_field)
        about |= {"audio": args.audio or "bundled (synthetic speech)", "utterances": len(waves)}
        found = {"format": checkpoint.format, "fingerprint": model.fingerprint()}
        checks.append(Check("format", PASSED, f"{checkpoint.format}, complete, all weights finite", found))
        with torch.no_grad():
            checks += run_checks(Subject(checkpoint, model, waves))
    passed = all(check.state != FAILED for check in checks)
    about |= {"passed": passed, "seconds": round(time.monotonic() - start, 1)}
    if args.json:
        write_json(args.json, {**about, "checks": [check._asdict() for check in checks]})
    print(page(about, checks))
    return 0 if passed else 1


def page(about: dict[str, Any], checks: list[Check]) -> str:
    lines = [f"{key:12} {about[key]}" for key in ("checkpoint", "audio") if key in about]
    lines += ["", *(f"{check.state:8} {check.name:9} {check.text}" for check in checks)]
    table = next((check.found.get("table", []) for check in checks if check.name == "rates"), [])
    if len(table) > 1:
        lines += ["", "lambd  frame period (ms)  shortest  longest  published (ms)"]
    for row in table if len(table) > 1 else ():
        published = PUBLISHED_MS[0] / (1 - row["lambd"] * (1 - PUBLISHED_MS[0] / PUBLISHED_MS[1]))
        lines.append(
            f"{row['lambd']:5.1f}  {row['frame_period_ms']:17.1f}  {row['shortest_ms']:8.1f}  {row['longest_ms']:7.1f}"
            f"  {published:14.1f}"
        )
    failed = [check.name for check in checks if check.state == FAILED]
    verdict = f"not what it claims: {', '.join(failed)}" if failed else "what it claims"
    return "\n".join([*lines, "", f"The checkpoint is {verdict} ({about['seconds']:g} s)."])
