"""``s3prl-ofa exec``: runs a module of another tool with the shims and the upstream in place."""

import argparse
import importlib
import importlib.util
import os
import runpy
import sys

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.compat.shims import apply_shims  # importing s3prl_ofa.superb registers the upstream


def run(args: argparse.Namespace) -> int:
    """Runs the module as ``python -m`` does. Raises UsageError if there is no such module, and its own errors."""
    sys.path.insert(0, os.getcwd())
    apply_shims()  # before the tool imports torchaudio
    if not is_module(args.tool):
        raise UsageError(f"there is no module {args.tool} to run; expected an installed one, such as s3prl.main")
    if args.tool.startswith("fairseq"):
        importlib.import_module("s3prl_ofa.pretrain")  # registers our models and tasks with fairseq
    sys.argv = [args.tool, *args.tool_arguments]
    runpy.run_module(args.tool, run_name="__main__", alter_sys=True)
    return 0


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError as error:
        if name.startswith(f"{error.name}."):
            return False
        raise
