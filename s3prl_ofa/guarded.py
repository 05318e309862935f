"""Lets S3PRL and fairseq read files for us without running anything that is in them.

Both take checkpoints as whole pickles in places (S3PRL's ``distiller``, ``mockingjay`` and ``roberta`` ask torch for
``weights_only=False``), and both pass strings of checkpoints and configs to ``eval`` (``conv_feature_layers``,
``feat_type``, ``adam_betas``, names of classes). While ``nothing_run`` holds, torch reads weights only, and what these
two unpickle or evaluate is a value or a name.
"""

import ast
import builtins
import contextlib
import functools
import os
import pickle
import re
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import torch

from .checkpoint.fairseq_format import parse_conv_layers
from .checkpoint.safe_pickle import explain
from .errors import CheckpointError, UsageError

GUARDED = ("s3prl.", "fairseq.")  # modules that are held to values and names
# a name, and what is in it: get_Adam, self.get_dev_dataloader, self.model.encoder.layers[0], -math.inf
NAME = re.compile(r"-?[^\W\d]\w*(\.[^\W\d]\w*|\[\d+\])*")
# where a function or class may come from that is named by a string: S3PRL calls what it has evaluated
CALLABLE = ("s3prl.", "s3prl_ofa.", "fairseq.", "torch.nn.", "torchaudio.compliance.kaldi")
DATA = (bool, int, float, str, list, tuple, dict, type(None), torch.nn.Module)
SHOWN = 80  # characters of a string in a message


@contextlib.contextmanager
def nothing_run() -> Iterator[None]:
    """Keeps what S3PRL and fairseq read from being run, until the block ends, in this process and those it forks.

    Within it ``torch.load`` raises CheckpointError for a file that holds more than weights and plain values. Called by
    S3PRL or fairseq, ``pickle.load`` raises it for more than plain values, and ``eval`` raises UsageError for more than
    a value or a name of theirs.
    """
    with (
        replaced(torch, load=weights_only(torch.load)),
        replaced(pickle, load=values_only(pickle.load)),
        replaced(builtins, eval=harmless_eval(builtins.eval)),
    ):
        yield


@contextlib.contextmanager
def replaced(module: Any, **values: Any) -> Iterator[None]:
    """Other values for names of a module, until the block ends; a value may also be the present one, to be kept."""
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def weights_only(load: Callable[..., Any]) -> Callable[..., Any]:
    """``torch.load`` that takes weights only, whatever it is told. Raises CheckpointError naming the file."""

    @functools.wraps(load)
    def safe_load(f: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("weights_only"):  # who asks for it expects what torch raises
            return load(f, *args, **kwargs)
        try:
            return load(f, *args, **{**kwargs, "weights_only": True})
        except OSError:
            raise
        except Exception as error:  # a damaged file can fail anywhere in the unpickler, with any kind of exception
            raise CheckpointError(f"{name_of(f)}: {refusal(error)}") from error

    return safe_load


def name_of(file: Any) -> Any:
    return file if isinstance(file, str | os.PathLike) else getattr(file, "name", "what is loaded")


class ValuesOnly(pickle.Unpickler):
    """Reads dicts, lists, strings and numbers."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"refused, because it asks to run or build {module}.{name}; expected plain values")


def values_only(load: Callable[..., Any]) -> Callable[..., Any]:
    """``pickle.load`` that takes plain values alone from S3PRL and fairseq, which keep lists of files in pickles."""

    @functools.wraps(load)
    def safe_load(file: Any, **options: Any) -> Any:
        if not is_guarded(sys._getframe(1)):
            return load(file, **options)
        try:
            return ValuesOnly(file, **options).load()
        except pickle.UnpicklingError as error:
            raise CheckpointError(f"{name_of(file)}: {error}") from error

    return safe_load


def is_guarded(caller: types.FrameType) -> bool:
    return str(caller.f_globals.get("__name__")).startswith(GUARDED)


def refusal(error: Exception) -> str:
    """One sentence for what ``torch.load`` raised, and what to do where it refused a type or function."""
    if "TorchScript" in str(error):  # torch advises to run it
        reason = "refused, because it is a TorchScript archive, which is a program; expected weights and plain values"
    else:
        reason = explain(error)
    cure = "; where you trust it, save it again with weights and plain values alone"
    return reason + cure * reason.startswith("refused")


def harmless_eval(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """``eval`` that takes values and names alone when S3PRL or fairseq call it; for others it is the one given."""

    def safe_eval(source: Any, *scopes: Any) -> Any:
        caller = sys._getframe(1)
        scopes = scopes or (caller.f_globals, caller.f_locals)
        if not is_guarded(caller) or not isinstance(source, str):
            return evaluate(source, *scopes)
        text = source.strip()
        if not NAME.fullmatch(text):
            return value_of(text)
        value = evaluate(text, *scopes)
        if isinstance(value, DATA) or callable(value) and f"{getattr(value, '__module__', '')}.".startswith(CALLABLE):
            return value
        raise refused(text)

    return safe_eval


def value_of(text: str) -> Any:
    """A literal, or a list of convolutions such as "[(512, 3, 2)] * 4". Raises UsageError for anything else."""
    try:
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        pass
    try:
        return list(parse_conv_layers(text))
    except ValueError:
        raise refused(text) from None


def refused(text: str) -> UsageError:
    return UsageError(f"{text[:SHOWN]!r} is not run: a value or a plain name is expected in a config or a checkpoint")
