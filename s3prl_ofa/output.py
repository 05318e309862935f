"""What a command shows besides its results: the log and summaries, controlled by ``--quiet`` and ``--verbose``."""

import logging
import os
import sys
from typing import TextIO


def set_up_logging(quiet: bool, verbosity: int) -> None:
    """Logs to stderr: warnings, with verbosity 1 also progress, with 2 everything; if quiet, only errors.

    Quiet also applies to S3PRL, to fairseq and to the processes that the command starts.
    """
    level = logging.ERROR if quiet else (logging.WARNING, logging.INFO, logging.DEBUG)[min(verbosity, 2)]
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("s3prl_ofa").setLevel(level if quiet else logging.NOTSET)
    if quiet:
        os.environ |= {"TQDM_DISABLE": "1", "LOGLEVEL": "ERROR"}  # for tqdm and fairseq, which are imported later


def is_quiet() -> bool:
    return not logging.getLogger("s3prl_ofa").isEnabledFor(logging.WARNING)


def tell(text: str, file: TextIO | None = None) -> None:
    """Prints a summary (default: to stdout), unless ``--quiet`` was given. Results and errors are always printed."""
    if not is_quiet():
        print(text, file=file or sys.stdout)
