"""Errors that the user can fix, which the command line prints in one line, and helpers for their messages."""

import reprlib
from collections.abc import Iterable

LONGEST_SHOWN = 160  # characters

_repr = reprlib.Repr()
_repr.maxlevel = 3
_repr.maxstring = _repr.maxother = _repr.maxlong = 80
_repr.maxdict = _repr.maxlist = _repr.maxtuple = _repr.maxset = _repr.maxfrozenset = 8


def shown(value: object) -> str:
    """``repr(value)``, shortened for a message: a value from a file can have any size, or contain itself."""
    text = _repr.repr(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def shown_text(text: str) -> str:
    """``shown(text)`` without its quotes."""
    return shown(text)[1:-1]


def escaped(text: str) -> str:
    """The text on one line, with escapes for characters that are invisible or change how the rest is displayed: control
    characters, line breaks, unusual spaces, invisible letters (U+200B), changes of direction (U+202E)."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def listed(items: Iterable[str], limit: int = 5, separator: str = ", ") -> str:
    """The first ``limit`` items and the number of the others, for a message."""
    items = list(items)
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more


class UsageError(ValueError):
    """The request itself is wrong, such as a bad option or a missing folder: exit status 2."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, is not safe to read, or does not fit; the message names the file and the reason."""
