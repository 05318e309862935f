"""The parser that all commands share: one-line errors, suggestions for typos, examples, and common options."""

import argparse
import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from s3prl_ofa.device import AUTO
from s3prl_ofa.errors import UsageError, escaped

# argparse's message for a value that is not one of an argument's choices; quoting depends on the Python version
INVALID_CHOICE = re.compile(r"invalid choice: '(?P<found>.*)' \(choose from (?P<choices>.*)\)")

CKPT_HELP = (
    "a checkpoint of any known format: a file, a folder, USER/NAME on the Hugging Face Hub, a URL, or tiny (bundled)"
)
DTYPES = ("float32", "float16", "bfloat16", "int8", "auto")  # of a model that runs


class Parser(argparse.ArgumentParser):
    """A parser that raises UsageError with a suggestion, has the common options, and ends its help with examples.

    examples: command lines, each with a comment if it needs one. intermixed: whether options may stand between
    positional arguments. Both are set by the function that adds a command's arguments.
    """

    examples: Sequence[str] = ()
    intermixed = False
    given: Sequence[str] = ()  # what is being parsed

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        common = self.add_argument_group("common options")
        # SUPPRESS: the parser of a subcommand must not reset what was given before it
        for names, action, text in (
            (("-q", "--quiet"), "store_true", "print results and errors, but no progress bars, summaries or warnings"),
            (("-v", "--verbose"), "count", "log more; twice for debugging"),
            (("--debug",), "store_true", "show the traceback of an error"),
        ):
            common.add_argument(*names, action=action, default=argparse.SUPPRESS, help=text)

    def format_help(self) -> str:
        return "\n  ".join([f"{super().format_help()}\nexamples:", *self.examples]) + "\n"

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        parse = super().parse_intermixed_args if self.intermixed else super().parse_args
        return parse(args, namespace)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        if args is not None:
            self.given = args
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{one_line(message)}{self.suggestion(message)} (see {self.prog} --help)")

    def suggestion(self, message: str) -> str:
        """The nearest choice for a mistyped value, or the nearest option for a mistyped one."""
        if match := INVALID_CHOICE.search(message):
            words, known = [match["found"]], re.findall(r"[\w-]+", match["choices"])
        else:
            known = sorted(set(self.long_options()))
            words = [word.partition("=")[0] for word in self.given if word.startswith("--")]
            words = [word for word in words if not any(option.startswith(word) for option in known)]
        nearest = [near for word in words for near in difflib.get_close_matches(word, known, 1)]
        return f"; did you mean {nearest[0]}?" if nearest else ""

    def long_options(self) -> Iterator[str]:
        """The long options of this parser and of its subcommands."""
        for action in self._actions:
            yield from (option for option in action.option_strings if option.startswith("--"))
            if isinstance(action, argparse._SubParsersAction):
                for parser in action.choices.values():
                    yield from parser.long_options()


def add_device_argument(parser: argparse._ActionsContainer) -> None:
    """Adds ``--device``, for ``resolve_device``."""
    help_text = f"{AUTO} (the default: cuda if there is a GPU), cpu, cuda, cuda:1, ..."
    parser.add_argument("--device", default=AUTO, help=help_text)


def one_line(message: object) -> str:
    return escaped(" ".join((worker_message(message) or str(message)).split()))


def worker_message(error: object) -> str | None:
    """The message of an error in a data worker, taken from the traceback that torch reports; None for other errors."""
    text = str(error).strip()
    if not (text.startswith("Caught ") and "Original Traceback" in text):
        return None
    return text.splitlines()[-1].partition(": ")[2]
