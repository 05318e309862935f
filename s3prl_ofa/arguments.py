"""The parser that all commands share: one-line errors, suggestions for typos, and common options."""

import argparse
import difflib
import re
from typing import NoReturn

from s3prl_ofa.device import AUTO

# argparse's message for a value that is not one of an argument's choices; quoting depends on the Python version
INVALID_CHOICE = re.compile(r"invalid choice: '(?P<found>.*)' \(choose from (?P<choices>.*)\)")


class Parser(argparse.ArgumentParser):
    """Reports an error in one line, and suggests the nearest of an argument's choices."""

    def error(self, message: str) -> NoReturn:
        match = INVALID_CHOICE.search(message)
        choices = re.findall(r"[\w-]+", match["choices"]) if match else []
        nearest = difflib.get_close_matches(match["found"], choices, 1) if match else []
        suggestion = f"; did you mean {nearest[0]}?" if nearest else ""
        self.exit(2, f"{self.prog}: error: {one_line(message)}{suggestion} (see {self.prog} --help)\n")


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """``--device``, for ``resolve_device``."""
    help_text = f"{AUTO} (the default: cuda if there is a GPU), cpu, cuda, cuda:1, ..."
    parser.add_argument("--device", default=AUTO, help=help_text)


def one_line(message: object) -> str:
    return " ".join((worker_message(message) or str(message)).split())


def worker_message(error: object) -> str | None:
    """The message of an error in a data worker, taken from the traceback that torch reports; None for other errors."""
    text = str(error).strip()
    if not (text.startswith("Caught ") and "Original Traceback" in text):
        return None
    return text.splitlines()[-1].partition(": ")[2]
