"""Lets S3PRL and fairseq read files without running anything in them.

Both load some checkpoints as full pickles (S3PRL's ``distiller``, ``mockingjay`` and ``roberta`` ask torch for
``weights_only=False``), and both pass strings from checkpoints and configs to ``eval`` (``conv_feature_layers``,
``feat_type``, ``adam_betas``, names of classes). Inside ``no_code_from_files``, torch loads weights only, and both can
unpickle and evaluate only values and names.
"""

import argparse
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

from s3prl_ofa.checkpoint.fairseq_format import parse_conv_layers
from s3prl_ofa.checkpoint.safe_pickle import explain
from s3prl_ofa.checkpoint.torch_file import check_torch_file
from s3prl_ofa.errors import CheckpointError, UsageError, shown

GUARDED = ("s3prl.", "fairseq.")  # packages that may only read values and names
# a name with attributes and indices: get_Adam, self.get_dev_dataloader, self.model.encoder.layers[0], -math.inf
NAME = re.compile(r"-?[^\W\d]\w*(\.[^\W\d]\w*|\[\d+\])*")
# modules whose functions and classes a string may name; S3PRL calls what it evaluates
CALLABLE = ("s3prl.", "s3prl_ofa.", "fairseq.", "torch.nn.", "torchaudio.compliance.kaldi")
DATA_TYPES = (bool, int, float, str, list, tuple, dict, type(None), torch.nn.Module)


@contextlib.contextmanager
def no_code_from_files() -> Iterator[None]:
    """Keeps S3PRL and fairseq from running what they read during the block, in this process and those it forks.

    ``torch.load`` raises CheckpointError for a file that holds more than weights and plain values. For S3PRL and
    fairseq, ``pickle.load`` raises CheckpointError for anything but plain values, and ``eval`` raises UsageError for
    anything but a value or a name of theirs.
    """
    with (
        patched_attributes(torch, load=weights_only(torch.load)),
        patched_attributes(pickle, load=values_only(pickle.load)),
        patched_attributes(builtins, eval=harmless_eval(builtins.eval)),
    ):
        yield


def namespace_in_checkpoints() -> bool:
    """From 2.6 on ``torch.load`` refuses ``argparse.Namespace``, in which S3PRL and older fairseq keep settings.

    Returns whether this call made torch accept it.
    """
    serialization = torch.serialization
    if not hasattr(serialization, "add_safe_globals") or argparse.Namespace in serialization.get_safe_globals():
        return False
    serialization.add_safe_globals([argparse.Namespace])
    return True


@contextlib.contextmanager
def patched_attributes(module: Any, **values: Any) -> Iterator[None]:
    """Sets attributes of a module for the duration of the block, and restores them, whatever the block does to them."""
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def weights_only(load: Callable[..., Any]) -> Callable[..., Any]:
    """A ``torch.load`` that loads only weights, whatever the caller asks. Raises CheckpointError naming the file."""

    @functools.wraps(load)
    def safe_load(f: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("weights_only"):  # this caller expects torch's own errors
            return load(f, *args, **kwargs)
        try:
            if isinstance(name_of(f), str | os.PathLike) and os.path.isfile(name_of(f)):
                check_torch_file(name_of(f))
            return load(f, *args, **{**kwargs, "weights_only": True})
        except OSError:
            raise
        except Exception as error:  # a damaged file can fail anywhere in the unpickler, with any kind of exception
            raise CheckpointError(f"{name_of(f)}: {explain_refusal(error)}") from error

    return safe_load


def name_of(file: Any) -> Any:
    return file if isinstance(file, str | os.PathLike) else getattr(file, "name", "what is loaded")


class ValuesOnly(pickle.Unpickler):
    """Unpickles only dicts, lists, strings and numbers."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"refused, because it asks to run or build {module}.{name}; expected plain values")


def values_only(load: Callable[..., Any]) -> Callable[..., Any]:
    """A ``pickle.load`` that loads only plain values for S3PRL and fairseq, which store lists of files in pickles."""

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


def explain_refusal(error: Exception) -> str:
    """An error of ``torch.load`` or our reader as one sentence, with advice if a type or function was refused."""
    if "TorchScript" in str(error):  # torch's message advises to run it
        reason = "refused, because it is a TorchScript archive, which is a program; expected weights and plain values"
    else:
        reason = str(error) if isinstance(error, CheckpointError) else explain(error)
    advice = "; if you trust it, save it again with only weights and plain values"
    return reason + advice * reason.startswith("refused")


def harmless_eval(evaluate: Callable[..., Any]) -> Callable[..., Any]:
    """An ``eval`` that accepts only values and names from S3PRL and fairseq; for other callers it is ``evaluate``."""

    def safe_eval(source: Any, *scopes: Any) -> Any:
        caller = sys._getframe(1)
        scopes = scopes or (caller.f_globals, caller.f_locals)
        if not is_guarded(caller) or not isinstance(source, str):
            return evaluate(source, *scopes)
        text = source.strip()
        if not NAME.fullmatch(text):
            return value_of(text)
        value = evaluate(text, *scopes)
        if (
            isinstance(value, DATA_TYPES)
            or callable(value)
            and f"{getattr(value, '__module__', '')}.".startswith(CALLABLE)
        ):
            return value
        raise not_evaluated(text)

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
        raise not_evaluated(text) from None


def not_evaluated(text: str) -> UsageError:
    return UsageError(f"{shown(text)} is not run: expected a value or a plain name in a config or checkpoint")
