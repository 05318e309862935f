"""Reading what ``torch.save`` wrote without running anything that the file asks for.

fairseq's older files hold more than tensors: ``argparse.Namespace``, omegaconf containers, numpy scalars, a dictionary
of letters. Here each of those names stands for an inert class of this module that only keeps, or drops, what it is
given, so neither fairseq nor omegaconf nor numpy takes part. Everything else that torch's own restricted unpickler does
not know is refused by name.
"""

import argparse
import itertools
import os
import pathlib
import pickle
import re
import threading
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

from ..errors import CheckpointError

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
# Of a configuration; fairseq's own has about five levels and a thousand values, a hostile one as many as it likes.
MAX_DEPTH, MAX_VALUES = 32, 100_000


class StandIn:
    """Takes the place of a class named in a file: keeps the state it is given and does nothing else."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "StandIn":
        instance = super().__new__(cls)
        instance.state = {}
        return instance

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


class Container(StandIn):
    """omegaconf's DictConfig and ListConfig."""


class Node(StandIn):
    """omegaconf's values."""


class Namespace(StandIn):
    """argparse's Namespace."""


class Dropped(StandIn):
    """Something whose content nobody needs: a type, a numpy number, metadata."""


def empty_dict(*args: Any) -> dict:
    """Takes the place of collections.defaultdict, whose factory must not be called."""
    return {}


NAMES = {
    Container: ("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    Node: tuple(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "Integer", "Float", "String", "Boolean", "Bytes", "Path", "Enum")
    ),
    Namespace: ("argparse.Namespace",),
    empty_dict: ("collections.defaultdict",),
    Dropped: (
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        "typing.Any",
        *(f"typing.{name}" for name in ("Dict", "List", "Optional", "Tuple", "Union")),
        *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "int", "list", "object", "str", "tuple")),
        "numpy.dtype",
        "numpy.ndarray",
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        # types that a structured omegaconf configuration of fairseq names, and the letters of a fine-tuned model
        "fairseq.data.dictionary.Dictionary",
        "fairseq.dataclass.configs.FairseqConfig",
        "fairseq.models.wav2vec.wav2vec2.Wav2Vec2Config",
        "fairseq.models.wav2vec.wav2vec2_asr.Wav2Vec2CtcConfig",
        "fairseq.tasks.audio_pretraining.AudioPretrainingConfig",
        "fairseq.tasks.audio_pretraining.InferredW2vConfig",
        "fairseq.tasks.audio_finetuning.AudioFinetuningConfig",
    ),
}
ALLOWED = [(stand_in, name) for stand_in, names in NAMES.items() for name in names]
# torch keeps one list of allowed names for the process: of two threads the first to end would take it from the other.
LOCK = threading.Lock()
REFUSALS = (
    re.compile(r"Unsupported global: GLOBAL (\S+) was not an allowed global"),
    re.compile(r"unsupported GLOBAL (\S+) whose module"),
    re.compile(r"reduce for unrecognized function (.+)"),
    re.compile(r"allowlisted via `add_safe_globals`,? but got (.+)"),
)


def read_torch_file(path: str | os.PathLike) -> Any:
    """What ``torch.save`` wrote at ``path``, in the zip form or the older one, on the CPU.

    Tensors of a zip file are mapped, not read. Stand-ins may be among the values: ``plain`` makes a configuration of
    them. Raises CheckpointError, whose sentence leaves out the file's name, for a file that names anything outside the
    allow-list, and for one that is damaged.
    """
    path = pathlib.Path(path)
    with LOCK, torch.serialization.safe_globals(ALLOWED):
        try:
            with path.open("rb") as file:
                is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
            if is_zip:
                check_stored(path)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged file can fail anywhere in the unpickler, with any kind of exception
            raise CheckpointError(explain(error)) from error


def check_stored(path: pathlib.Path) -> None:
    """A mapped tensor is the file's bytes as they lie, so a file zipped again with compression would give noise."""
    with zipfile.ZipFile(path) as archive:
        if any(name.endswith("/constants.pkl") for name in archive.namelist()):
            raise CheckpointError("a TorchScript archive; expected the weights of a model")
        for entry in archive.infolist():
            if entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(
                    f"the zip entry {entry.filename} is compressed; expected a file as torch.save writes"
                )


def explain(error: Exception) -> str:
    """One sentence for what torch.load raised."""
    text = str(error)
    for pattern in REFUSALS:
        found = pattern.search(text)
        if found:
            name = found.group(1).rstrip(".")
            name = name if "." in name or " " in name else f"builtins.{name}"  # torch leaves that module out
            return (
                f"refused, because it asks to run or build {name}; expected only tensors, plain values and fairseq's "
                "configuration classes"
            )
    if isinstance(error, pickle.UnpicklingError):
        text = re.sub(r"(?s).*WeightsUnpickler error:\s*", "", text)
    reason = ": ".join([type(error).__name__, *text.strip().splitlines()[:1]])
    return f"damaged, cut short or not a checkpoint ({reason[:200]})"


def unwrap(value: Any) -> Any:
    """The dict, list or value that a stand-in holds, one level of it; anything else as it is."""
    if isinstance(value, Container):
        return value.state.get("_content")
    if isinstance(value, Node):
        return value.state.get("_val")
    if isinstance(value, Namespace):
        return value.state
    if isinstance(value, argparse.Namespace):  # another library may have allowed the real class
        return vars(value)
    return value


def plain(value: Any, depth: int = 0, count: Iterator[int] | None = None) -> Any:
    """A configuration without stand-ins: dicts with string keys, lists, strings, numbers, booleans and None.

    Raises CheckpointError when it holds anything else, or has no end. The last two arguments are its own, for what is
    inside.
    """
    count = itertools.count(1) if count is None else count
    if depth > MAX_DEPTH or next(count) > MAX_VALUES:
        raise CheckpointError(f"the configuration has more than {MAX_DEPTH} levels or {MAX_VALUES} values")
    value = unwrap(value)
    if isinstance(value, dict):
        return {str(key): plain(item, depth + 1, count) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, depth + 1, count) for item in value]
    if value is None or isinstance(value, Dropped):
        return None
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Node | Container | Namespace):
        return plain(value, depth + 1, count)
    raise CheckpointError(f"the configuration holds a {type(value).__name__}; expected plain values")
