"""The command line, ``s3prl-ofa <command>``: wiring, exit statuses and errors."""

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

from s3prl_ofa.arguments.parser import Parser, one_line
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.io.files import DiskFull, writing
from s3prl_ofa.output import set_up_logging
from s3prl_ofa.signals import SIGNAL_STATUS, Terminated, termination
from s3prl_ofa.version import __version__

PROG = "s3prl-ofa"


class Command(NamedTuple):
    """A command: the function ``run`` of ``module``. Its arguments are in the module of the same name in ``arguments``.

    Both are imported only when the command is called, ``module`` only after its arguments have been parsed.
    """

    module: str
    help: str
    run: str = "run"


COMMANDS = {
    "extract": Command("s3prl_ofa.extract.command", "write features, lengths and times of audio files to disk"),
    "info": Command("s3prl_ofa.info", "show what a checkpoint holds, and its frame period for every lambd"),
    "verify": Command("s3prl_ofa.verify.command", "check within a minute whether a checkpoint is what it claims"),
    "run_downstream": Command("s3prl_ofa.superb.downstream.command", "train and evaluate tasks with S3PRL"),
    "predict": Command("s3prl_ofa.superb.predict.command", "apply a trained task to new audio, as JSON lines"),
    "link": Command("s3prl_ofa.superb.compat.link", "add the upstream to a source checkout of S3PRL"),
    "unlink": Command("s3prl_ofa.superb.compat.link", "remove the upstream from a source checkout", "run_unlink"),
    "prepare": Command("s3prl_ofa.superb.prepare.command", "make what tasks and pretraining need from corpora"),
    "guidance": Command("s3prl_ofa.guidance.command", "make targets for alpha from alignments or from speech alone"),
    "pretrain": Command("s3prl_ofa.pretrain.launch", "train a once-for-all wav2vec 2.0 with fairseq"),
    "exec": Command("s3prl_ofa.execute", "run a module of S3PRL, ESPnet or fairseq with the upstream in place"),
    "sweep": Command("s3prl_ofa.sweep.run.command", "run rates x tasks x seeds from one file, resumable"),
    "report": Command("s3prl_ofa.sweep.report.command", "make a table, plots and a page of a sweep's results"),
    "convert": Command("s3prl_ofa.checkpoint.command", "convert a checkpoint from one format to another"),
    "export": Command("s3prl_ofa.export.command", "write the model as an ONNX file, for runtimes without torch"),
    "push": Command("s3prl_ofa.checkpoint.push", "upload a checkpoint to a repository on the Hugging Face Hub"),
    "demo": Command("s3prl_ofa.demo.page", "move the frame period on a local web page; see and hear what changes"),
    "completion": Command("s3prl_ofa.completion", "print a completion script for bash, zsh or tcsh"),
}


def build_parser() -> Parser:
    width = max(map(len, COMMANDS))
    parser = Parser(
        prog=PROG,
        description="A wav2vec 2.0 whose frame period is chosen at run time.",
        epilog="commands:\n" + "\n".join(f"  {name:{width}}  {command.help}" for name, command in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.examples = ("s3prl-ofa info tiny", "s3prl-ofa extract audio --ckpt tiny --frame-period-ms 50 --out features")
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    # torch.distributed.launch puts it before the arguments of the command.
    parser.add_argument("--local-rank", "--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="?", choices=COMMANDS, metavar="command", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=f"see: {PROG} <command> --help")
    return parser


def add_command_arguments(name: str, parser: Parser) -> None:
    importlib.import_module(f"s3prl_ofa.arguments.{name}").add_arguments(parser)


def build_command_parser(name: str) -> Parser:
    parser = Parser(prog=f"{PROG} {name}", description=COMMANDS[name].help)
    add_command_arguments(name, parser)
    return parser


def run_command(name: str, args: argparse.Namespace) -> int:
    """Runs one command and returns its exit status. args: from the command's parser."""
    command = COMMANDS[name]
    return getattr(importlib.import_module(command.module), command.run)(args) or 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit status: 0 success, 1 failure, 2 bad usage, 130 Ctrl-C, 143 SIGTERM."""
    parser = build_parser()
    try:
        options = parser.parse_args(argv)
        if options.command is None:
            parser.print_help()
            return 0
        parser = build_command_parser(options.command)
        args = parser.parse_args(options.arguments)
    except UsageError as error:
        return failed(parser.prog, error, debug=False)
    if options.local_rank is not None and options.command == "run_downstream":
        args.local_rank = options.local_rank
    common = vars(options) | vars(args)
    verbosity = getattr(options, "verbose", 0) + getattr(args, "verbose", 0)
    set_up_logging(common.get("quiet", False), verbosity)
    return guarded(parser.prog, lambda: run_command(options.command, args), common.get("debug", False))


def guarded(prefix: str, run: Callable[[], int], debug: bool = False) -> int:
    """Returns the exit status of ``run``. Its errors become one line on stderr, or with ``debug`` a traceback."""
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
    """Prints the error on one line and returns the exit status; with ``debug`` raises it again."""
    if isinstance(error, BrokenPipeError):
        # The reader of our output is gone (``| head``); keep Python from complaining again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if debug:
        raise error
    message = one_line(error) or "no message"
    if isinstance(error, OSError) and type(error).__str__ is OSError.__str__ and error.filename and error.strerror:
        message = one_line(f"{error.filename}: {error.strerror}")
    elif not isinstance(error, ValueError | DiskFull):
        message = f"{type(error).__name__}: {message}"
    print(f"{prefix}: error: {message}", file=sys.stderr)
    return 2 if isinstance(error, UsageError | CheckpointError) else 1
