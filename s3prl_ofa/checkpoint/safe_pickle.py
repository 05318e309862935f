"""Interprets the pickle inside a PyTorch file without importing or calling anything that it names.

Python's unpickler calls whatever the file names. This one knows only the instructions that ``torch.save`` writes and a
table of names. A name in the table makes a plain container, a ``StoredTensor`` or an inert stand-in; any other name is
refused. fairseq's older files hold more than tensors: ``argparse.Namespace``, omegaconf containers, numpy scalars, a
dictionary of letters. Their stand-ins only keep or drop what they are given, so fairseq, omegaconf and numpy are not
needed.
"""

import dataclasses
import math
import pickle
import pickletools
import re
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO

import torch
from torch import Tensor

from s3prl_ofa.errors import CheckpointError, shown, shown_text

# Bounds far beyond real files: a Large model with its optimizer has some 40,000 instructions and 1,300 tensors.
MAX_PICKLE = 2**25  # bytes
MAX_INSTRUCTIONS, MAX_DIMS = 250_000, 8


class StandIn:
    """Takes the place of an object in the file; keeps the state it is given and does nothing else."""

    def __init__(self) -> None:
        self.state: dict[Any, Any] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"  # its state can have any size, and contain itself

    @classmethod
    def made(cls, arguments: tuple) -> "StandIn":
        return cls()


class Container(StandIn):
    """omegaconf's DictConfig and ListConfig."""


class Node(StandIn):
    """omegaconf's values."""


class Namespace(StandIn):
    """argparse's Namespace."""


class Dropped(StandIn):
    """An object whose content is not needed: a type, a numpy number, metadata."""


class Bytes(StandIn):
    """Bytes, which torch.save writes as a call. They are never created: a few instructions could ask for any number."""


class OddTensor(StandIn):
    """A tensor that cannot be a weight: sparse, quantized, nested, negated, without data, of a rare dtype, with
    attributes."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A function or class that the pickle names; ``make`` turns its arguments into what takes its place."""

    name: str
    make: Callable[[tuple], Any]


@dataclasses.dataclass(frozen=True)
class Storage:
    """The numbers of tensors: ``numel`` of ``dtype`` under ``key``; ``data`` maps keys to bytes."""

    key: str
    dtype: torch.dtype
    numel: int
    data: dict[str, Tensor] = dataclasses.field(compare=False, repr=False)

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A dense tensor in the file, checked to lie within its storage and to have no more numbers than it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.size) == len(self.stride) <= MAX_DIMS:
            raise CheckpointError(f"a tensor has {len(self.size)} dimensions; expected at most {MAX_DIMS} with strides")
        counts = (self.offset, *self.size, *self.stride)
        if any(type(count) is not int or count < 0 for count in counts):
            raise CheckpointError(f"a tensor has the sizes {shown(counts)}; expected whole numbers from 0")
        numel = math.prod(self.size)
        last = self.offset + sum((size - 1) * stride for size, stride in zip(self.size, self.stride, strict=True))
        if numel > self.storage.numel or (numel and last >= self.storage.numel):
            raise CheckpointError(
                f"a tensor of shape {shown(self.size)} needs more than the {self.storage.numel} numbers that its "
                f"storage {shown(self.storage.key)} has"
            )

    def tensor(self) -> Tensor:
        """The tensor, without a copy if its position in the file is aligned."""
        numbers = self.storage.data[self.storage.key]
        if numbers.storage_offset() % self.storage.dtype.itemsize:
            numbers = numbers.clone()
        numbers = numbers.view(self.storage.dtype)
        return numbers.as_strided(self.size, self.stride, numbers.storage_offset() + self.offset)


def rebuilt_tensor(arguments: tuple) -> StoredTensor | OddTensor:
    """``torch._utils._rebuild_tensor_v2`` of storage, offset, size, stride, what only training needs and, seventh,
    whether the numbers are to be negated or conjugated."""
    storage, offset, size, stride = arguments[:4]
    if not (isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)):
        raise TypeError(f"a tensor made from {shown(arguments)}")
    if any(arguments[6:]):
        return OddTensor()
    return StoredTensor(storage, offset, size, stride)


def made_bytes(arguments: tuple) -> Bytes:
    """``_codecs.encode`` and ``bytearray`` of a text with one character per byte."""
    if arguments and not (isinstance(arguments[0], str) and arguments[1:] in (("latin1",), ("latin-1",))):
        raise CheckpointError(f"bytes are made from {shown(arguments)}, which torch.save does not write")
    return Bytes()


def hashed(arguments: tuple) -> Dropped:
    """``set`` and ``Counter``. Raises CheckpointError for items that ``update`` refuses as keys."""
    for items in arguments:
        update({}, list(items), list(items))
    return Dropped()


def ordered(arguments: tuple) -> dict[Any, Any]:
    """``OrderedDict``; Python 2 wrote its items as a list of pairs."""
    made: dict[Any, Any] = {}
    for key, value in arguments[0] if arguments else ():
        update(made, [key], [value])
    return made


STAND_INS: dict[type[StandIn], Iterable[str]] = {
    Container: ("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    Node: tuple(
        f"omegaconf.nodes.{kind}Node"
        for kind in ("Any", "Integer", "Float", "String", "Boolean", "Bytes", "Path", "Enum")
    ),
    Namespace: ("argparse.Namespace",),
    OddTensor: (
        "torch._tensor._rebuild_from_type_v2",
        *(f"torch._utils.{name}" for name in dir(torch._utils) if name.startswith("_rebuild_")),
    ),
    Dropped: (
        "omegaconf.base.ContainerMetadata",
        "omegaconf.base.Metadata",
        "typing.Any",
        *(f"typing.{name}" for name in ("Dict", "List", "Optional", "Tuple", "Union")),
        *(f"builtins.{name}" for name in ("bool", "bytes", "dict", "float", "int", "list", "object", "str", "tuple")),
        "builtins.complex",
        "numpy.dtype",
        "numpy.ndarray",
        *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
        "torch.device",
        "torch.Size",
        "torch.Tensor",
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        *{str(value) for value in vars(torch).values() if isinstance(value, torch.dtype | torch.qscheme)},
        # types named in fairseq's structured omegaconf configurations, and the letters of a fine-tuned model
        "fairseq.data.dictionary.Dictionary",
        "fairseq.dataclass.configs.FairseqConfig",
        "fairseq.models.hubert.hubert.HubertConfig",
        "fairseq.models.hubert.hubert_asr.HubertCtcConfig",
        "fairseq.models.wav2vec.wav2vec2.Wav2Vec2Config",
        "fairseq.models.wav2vec.wav2vec2_asr.Wav2Vec2CtcConfig",
        "fairseq.tasks.audio_pretraining.AudioPretrainingConfig",
        "fairseq.tasks.audio_pretraining.InferredW2vConfig",
        "fairseq.tasks.audio_finetuning.AudioFinetuningConfig",
        "fairseq.tasks.hubert_pretraining.HubertPretrainingConfig",
    ),
}
STORAGE_DTYPES = {
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.DoubleStorage": torch.float64,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.QInt8Storage": torch.int8,
    "torch.QUInt8Storage": torch.uint8,
    "torch.QInt32Storage": torch.int32,
    "torch.storage.UntypedStorage": torch.uint8,
}
MAKERS: dict[str, Callable[[tuple], Any]] = {
    **{name: stand_in.made for stand_in, names in STAND_INS.items() for name in names},
    **dict.fromkeys(STORAGE_DTYPES, Dropped.made),
    **dict.fromkeys(("_codecs.encode", "builtins.bytearray"), made_bytes),
    **dict.fromkeys(("builtins.set", "collections.Counter"), hashed),
    "collections.OrderedDict": ordered,
    "collections.defaultdict": lambda _: {},
    "torch._utils._rebuild_tensor_v2": rebuilt_tensor,
    "torch._utils._rebuild_parameter": lambda arguments: arguments[0],
}


def read_pickle(file: BinaryIO, data: dict[str, Tensor], storages: dict[str, Storage], for_torch: bool = False) -> Any:
    """The object that the pickle at the file's position describes; leaves the position after the pickle.

    data: the bytes of each storage by key, to which the tensors refer; may be filled later.
    storages: receives the storages that the pickle names.
    for_torch: torch reads the file next. Names outside the table then make stand-ins, because torch itself refuses
        them, and tensors that torch would build without bounds are refused.

    Raises CheckpointError for a name or an instruction that is not allowed and for sizes beyond the bounds; a damaged
    pickle can raise any other exception.
    """
    stack: list[Any] = []
    below: list[list[Any]] = []  # the stacks beneath each open mark
    memo: dict[int, Any] = {}
    argument: Any
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count > MAX_INSTRUCTIONS:
            raise CheckpointError(f"its pickle has more than {MAX_INSTRUCTIONS} instructions; expected a model")
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode.name])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                below.append(stack)
                stack = []
            case "TUPLE":
                stack, items = below.pop(), stack
                stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode.name[-1]))]
                stack.append(tuple(reversed(items)))
            case "APPEND":
                item = stack.pop()
                extend(stack[-1], [item])
            case "APPENDS":
                stack, items = below.pop(), stack
                extend(stack[-1], items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                update(stack[-1], [key], [value])
            case "SETITEMS":
                stack, items = below.pop(), stack
                update(stack[-1], items[::2], items[1::2])
            case "GLOBAL":
                stack.append(find(argument, for_torch))
            case "REDUCE" | "NEWOBJ":
                arguments, name = stack.pop(), stack.pop()
                stack.append(name.make(arguments))
                if for_torch and isinstance(stack[-1], OddTensor):
                    raise CheckpointError(refusal(name.name))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], StandIn) and isinstance(state, dict):
                    stack[-1].state = state  # for a dict, attributes of an OrderedDict: not needed
            case "BINPERSID":
                storage = make_storage(stack.pop(), data)
                if storages.setdefault(storage.key, storage) != storage:
                    raise CheckpointError(f"the storage {shown(storage.key)} has two sizes or types")
                stack.append(storage)
            case "PROTO":
                pass
            case "STOP":
                return stack.pop()
            case unknown:
                raise CheckpointError(f"its pickle has the instruction {unknown}, which torch.save does not write")


def find(argument: str, for_torch: bool) -> Name:
    """The Name for ``argument``, "module name". Raises CheckpointError if it is not in the table."""
    module, _, name = argument.partition(" ")
    full = f"{module.replace('__builtin__', 'builtins')}.{name}"  # Python 2's spelling, which protocol 2 keeps
    if not for_torch and full not in MAKERS:
        raise CheckpointError(refusal(full))
    return Name(full, MAKERS.get(full, Dropped.made))


def make_storage(persistent_id: Any, data: dict[str, Tensor]) -> Storage:
    """From ``("storage", type, key, device, numel)``; the older file format adds a sixth value, always None."""
    kind, storage_type, key, _, numel, *view = persistent_id
    if kind != "storage" or view not in ([], [None]) or not isinstance(key, str):
        raise CheckpointError(f"a storage is {shown(persistent_id)}, which torch.save does not write")
    if type(numel) is not int or not 0 <= numel < 2**48:
        raise CheckpointError(f"the storage {shown(key)} has the size {shown(numel)}; expected a whole number")
    return Storage(key, STORAGE_DTYPES[storage_type.name], numel, data)


def extend(target: Any, items: list[Any]) -> None:
    if type(target) is not list:
        raise TypeError(f"items for {shown(target)}, which is not a list")
    target.extend(items)


def update(target: Any, keys: list[Any], values: list[Any]) -> None:
    """Raises CheckpointError for keys that could take forever to hash: nested tuples, numbers chosen to collide."""
    if type(target) is not dict:
        raise TypeError(f"entries for {shown(target)}, which is not a dict")
    for key, value in zip(keys, values, strict=True):
        if not isinstance(key, str | int | float | None) or (isinstance(key, int) and abs(key) >= 2**63):
            raise CheckpointError(f"a dictionary has the key {shown(key)}; expected a name or a number")
        target[key] = value


REFUSALS = (
    re.compile(r"Unsupported global: GLOBAL (\S+) was not an allowed global"),
    re.compile(r"unsupported GLOBAL (\S+) whose module"),
    re.compile(r"reduce for unrecognized function (.+)"),
    re.compile(r"allowlisted via `add_safe_globals`,? but got (.+)"),
)


def refusal(name: str) -> str:
    return (
        f"refused, because it asks to run or build {shown_text(name)}; expected only tensors, plain values and "
        "fairseq's configuration classes"
    )


def explain(error: Exception) -> str:
    """One sentence on an error of ``read_pickle`` or ``torch.load(weights_only=True)``."""
    text = str(error)
    for pattern in REFUSALS:
        found = pattern.search(text)
        if found:
            name = found.group(1).rstrip(".")
            return refusal(name if "." in name or " " in name else f"builtins.{name}")  # torch omits that module
    if isinstance(error, pickle.UnpicklingError):
        text = re.sub(r"(?s).*WeightsUnpickler error:\s*", "", text)
    reason = ": ".join([type(error).__name__, *text.strip().splitlines()[:1]])
    return f"damaged, cut short or not a checkpoint ({reason[:200]})"
