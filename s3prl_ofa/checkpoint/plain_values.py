"""Turns a configuration from a file into plain values of bounded size."""

from typing import Any

from s3prl_ofa.checkpoint.safe_pickle import Container, Dropped, Name, Namespace, Node
from s3prl_ofa.errors import CheckpointError

# Bounds of a configuration: fairseq's has about five levels and a thousand values, a hostile one could have any number.
MAX_DEPTH, MAX_VALUES, MAX_CHARACTERS = 32, 100_000, 1_000_000


def unwrap(value: Any) -> Any:
    """The dict, list or value that a stand-in holds (one level only); any other value unchanged."""
    if isinstance(value, Container):
        return value.state.get("_content")
    if isinstance(value, Node):
        return value.state.get("_val")
    if isinstance(value, Namespace):
        return value.state
    return value


class Budget:
    """What is left of the bounds; a value that is referred to several times counts each time."""

    def __init__(self) -> None:
        self.values, self.characters = MAX_VALUES, MAX_CHARACTERS

    def spend(self, characters: int = 0) -> None:
        self.values -= 1
        self.characters -= characters
        if self.values < 0 or self.characters < 0:
            raise CheckpointError(f"the configuration has more than {MAX_VALUES} values or {MAX_CHARACTERS} characters")


def plain(value: Any, depth: int = 0, budget: Budget | None = None) -> Any:
    """A configuration without stand-ins: dicts with string keys, lists, strings, numbers, booleans and None.

    depth, budget: for the recursion. Raises CheckpointError for other values and for a configuration that is too large,
    too deep or contains itself.
    """
    budget = budget or Budget()
    budget.spend(len(value) if isinstance(value, str) else 0)
    if depth > MAX_DEPTH:
        raise CheckpointError(f"the configuration has more than {MAX_DEPTH} levels")
    value = unwrap(value)
    if isinstance(value, dict):
        budget.spend(sum(len(key) for key in value if isinstance(key, str)))
        return {str(key): plain(item, depth + 1, budget) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1, budget) for item in value]
    if value is None or isinstance(value, Dropped | Name):
        return None
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Node | Container | Namespace):
        return plain(value, depth + 1, budget)
    raise CheckpointError(f"the configuration holds a {type(value).__name__}; expected plain values")
