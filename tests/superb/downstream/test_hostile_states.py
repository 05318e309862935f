"""Files that torch reads for us (experiments, checkpoints of S3PRL's and fairseq's) or that are no model: small ones
that ask for endless work or memory are refused at once."""

import io

import pytest
import torch
from hostile_files import rebuilt
from hostile_pickles import MARK, STOP, TUPLE, call, name, number, text, tree

from s3prl_ofa.checkpoint import safe_loading
from s3prl_ofa.checkpoint.safe_pickle import read_pickle
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.guidance.layout import GuidanceError, read_alpha
from s3prl_ofa.superb.downstream.checkpoints import newest_readable

BOMB = tree(40, MARK, TUPLE)  # its hash takes hours
PAIR = b"](" + BOMB + b"K\x01\x86e"
PICKLES = {
    "a key": b"}" + BOMB + b"K\x01s",
    "a set": call(name("__builtin__", "set"), b"]" + BOMB + b"a"),
    "a counter": call(name("collections", "Counter"), b"]" + BOMB + b"a"),
    "an ordered dictionary": call(name("collections", "OrderedDict"), PAIR),
    "an opcode": b"\x8f(" + BOMB + b"\x90",
    "bytes": call(name("__builtin__", "bytearray"), number(3_000_000_000)),
    "punycode": call(name("_codecs", "encode"), text("\u0100a" * 30_000), text("punycode")),
    "a tensor that calls": call(
        *(name("torch._tensor", "_rebuild_from_type_v2"), name("collections", "Counter"), name("torch", "Tensor")),
        *(b"(]" + BOMB + b"at", b"}"),
    ),
    "a size": call(name("torch._utils", "_rebuild_tensor_v2"), b"N", number(0), BOMB, BOMB, b"\x89", b"}"),
    "deep": b"(" * 1000,
}


def loaded(path):
    with safe_loading.no_code_from_files():
        return torch.load(path, weights_only=False)


READERS = {
    "an experiment": lambda path: newest_readable([path]),
    "another checkpoint": loaded,
    "guidance": lambda path: read_alpha(path.parent, path.name),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("attack", PICKLES)
def test_refused_at_once(attack, reader, tmp_path):
    """One bounded sentence that names the file, before torch has built what the pickle describes."""
    path = tmp_path / "states-1.pt"
    records = {"data.pkl": b"\x80\x02" + PICKLES[attack] + STOP, "version": b"3\n", "data/0": bytes(16)}
    path.write_bytes(rebuilt({f"archive/{key}": data for key, data in records.items()}))
    with pytest.raises((CheckpointError, UsageError, GuidanceError)) as caught:
        READERS[reader](path)
    message = str(caught.value).replace(str(path), "")
    assert str(path) in str(caught.value) and "\n" not in message and len(message) < 500


def test_python_2_writes_pairs():
    """An OrderedDict of Python 2 gives its items to the call."""
    pairs = call(name("collections", "OrderedDict"), b"](](" + text("a") + b"K\x01ee")
    assert read_pickle(io.BytesIO(b"\x80\x02" + pairs + STOP), {}, {}) == {"a": 1}


@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_saves_is_read(zipped, tmp_path):
    """Sets, counters, bytes and numbers as keys are as before; the records' sizes are compared by us."""
    path = tmp_path / "x.pt"
    state = {"step": {0: torch.ones(2), 1.5: b"bytes\xff"}, "seen": {1, "a"}, "size": torch.Size([2]), None: 1j}
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    found = loaded(path)
    assert torch.equal(found["step"].pop(0), state["step"].pop(0)) and found == state
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(CheckpointError, match="x.pt: "):
        loaded(path)
