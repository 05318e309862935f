"""The command line, ``s3prl-ofa <command>``: wiring, exit statuses and errors; each command is a module elsewhere."""

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from s3prl_ofa.arguments import Parser, one_line
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.io.files import DiskFull, writing
from s3prl_ofa.signals import SIGNAL_STATUS, Terminated, termination
from s3prl_ofa.version import __version__


class Command(NamedTuple):
    """Where a command is implemented. The module is imported only for its command, so that ``--help`` is immediate."""

    module: str
    help: str
    add_arguments: str | None = "add_arguments"  # None: the command parses its arguments itself
    run: str = "run"


COMMANDS = {
    "extract": Command("s3prl_ofa.extract.command", "write features, lengths and times of audio files to disk"),
    "info": Command("s3prl_ofa.info", "show what a checkpoint holds, and its frame period for every lambd"),
    "run_downstream": Command("s3prl_ofa.superb.downstream.command", "train and evaluate tasks with S3PRL", None),
    "link": Command("s3prl_ofa.superb.compat.link", "add the upstream to a source checkout of S3PRL"),
    "unlink": Command("s3prl_ofa.superb.compat.link", "remove it from there", "add_unlink_arguments", "run_unlink"),
    "prepare": Command("s3prl_ofa.superb.prepare.command", "make the files that the tasks need from corpora"),
    "guidance": Command("s3prl_ofa.guidance.command", "make targets for alpha from alignments or from speech alone"),
    "pretrain": Command("s3prl_ofa.pretrain.launch", "train a once-for-all wav2vec 2.0 with fairseq", None),
    "sweep": Command("s3prl_ofa.sweep.run.command", "run rates x tasks x seeds from one file, resumable"),
    "report": Command("s3prl_ofa.sweep.report.command", "make a table, plots and a page of the results of a sweep"),
    "convert": Command("s3prl_ofa.checkpoint.command", "convert a checkpoint from one format to another"),
    "demo": Command("s3prl_ofa.demo.page", "move the frame period on a local web page; see and hear what changes"),
}


def build_parser() -> Parser:
    width = max(map(len, COMMANDS))
    parser = Parser(
        prog="s3prl-ofa",
        description="A wav2vec 2.0 whose frame period is chosen at run time.",
        epilog="commands:\n" + "\n".join(f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"s3prl-ofa {__version__}")
    parser.add_argument("-v", "--verbose", action="count", default=0, help="log more; twice for debugging")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error, also after the command")
    # torch.distributed.launch puts it before the arguments of the command.
    parser.add_argument("--local-rank", "--local_rank", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="command", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see: s3prl-ofa <command> --help")
    return parser


def run_command(name: str, arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit status."""
    command = COMMANDS[name]
    module = importlib.import_module(command.module)
    run = getattr(module, command.run)
    if command.add_arguments is None:
        return run(list(arguments)) or 0
    parser = Parser(prog=f"s3prl-ofa {name}", description=command.help)
    getattr(module, command.add_arguments)(parser)
    return run(parser.parse_args(arguments)) or 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status: 0 success, 1 failure, 2 bad usage, 130 Ctrl-C, 143 SIGTERM."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.command is None:
        parser.print_help()
        return 0
    # Also after the command, where most people put it; no option of S3PRL has this name.
    debug = options.debug or "--debug" in options.arguments
    arguments = [argument for argument in options.arguments if argument != "--debug"]
    if options.local_rank is not None and options.command == "run_downstream":
        arguments.append(f"--local_rank={options.local_rank}")
    level = (logging.WARNING, logging.INFO, logging.DEBUG)[min(options.verbose, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    return guarded(f"s3prl-ofa {options.command}", lambda: run_command(options.command, arguments), debug)


def guarded(prefix: str, run: Callable[[], int], debug: bool = False) -> int:
    """Returns the exit status of ``run``; its errors become one line on stderr, with ``debug`` they stay tracebacks."""
    with termination() as seen:
        try:
            try:
                with writing(None):
                    return run()
            except Exception as error:
                if not seen:
                    return failed(prefix, error, debug)
                raise Terminated from error  # torch raises an error for data workers that SIGTERM ended first
        except KeyboardInterrupt:
            if seen:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the process is ending
            print(f"{prefix}: {'terminated' if seen else 'interrupted'}", file=sys.stderr)
            return SIGNAL_STATUS + (signal.SIGTERM if seen else signal.SIGINT)


def failed(prefix: str, error: Exception, debug: bool) -> int:
    """Prints the error in one line and returns the exit status; with ``debug`` raises it again."""
    if isinstance(error, BrokenPipeError):
        # The reader of our output is gone (``| head``); keep Python from complaining again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if debug:
        raise error
    message = one_line(error) or "no message"
    if not isinstance(error, ValueError | DiskFull):
        message = f"{type(error).__name__}: {message}"
    print(f"{prefix}: error: {message}", file=sys.stderr)
    return 2 if isinstance(error, UsageError | CheckpointError) else 1
