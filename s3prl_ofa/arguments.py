"""The parser that every command shares."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)} (see {self.prog} --help)\n")


def one_line(message: object) -> str:
    return " ".join((worker_message(message) or str(message)).split())


def worker_message(error: object) -> str | None:
    """The message of a data worker's error, out of the traceback that torch passes on; None for any other error."""
    text = str(error).strip()
    if not (text.startswith("Caught ") and "Original Traceback" in text):
        return None
    return text.splitlines()[-1].partition(": ")[2]
