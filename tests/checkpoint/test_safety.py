"""Reading never runs anything in a file, and damage is one clear error."""

import importlib
import io
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from paths import REF_TINY

from s3prl_ofa.checkpoint import load, read_checkpoint
from s3prl_ofa.errors import CheckpointError


class Call:
    """Pickles as a call of any function with any arguments."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


class Build:
    """Pickles as an instance with a state."""

    def __init__(self):
        self.harm = "state"


@pytest.fixture(scope="module")
def reference():
    return torch.load(REF_TINY, weights_only=True)


def hostile_call(kind, marker):
    return {
        "posix.system": Call(os.system, f"touch {marker}"),
        "builtins.eval": Call(eval, f"open({str(marker)!r}, 'w')"),
        "builtins.getattr": Call(getattr, "text", "upper"),
        "importlib.import_module": Call(importlib.import_module, "antigravity"),
        "torch.serialization.load": Call(torch.load, str(marker)),
        "tests.checkpoint.test_safety.Build": Build(),
    }[kind]


@pytest.mark.parametrize("place", ["top", "weights", "config", "extra_state"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize(
    "name",
    [
        "posix.system",
        "builtins.eval",
        "builtins.getattr",
        "importlib.import_module",
        "torch.serialization.load",
        "tests.checkpoint.test_safety.Build",
    ],
)
def test_hostile_pickles_are_refused_by_name(reference, tmp_path, name, zipped, place):
    """A call outside the table is refused by name, wherever it is and in both formats of torch."""
    marker, path = tmp_path / "marker", tmp_path / "hostile.pt"
    call = hostile_call(name, marker)
    state = {"cfg": reference["cfg"], "model": dict(reference["model"]), "extra_state": {}}
    if place == "top":
        state = call
    elif place == "weights":
        state["model"]["mask_emb"] = call
    elif place == "config":
        state["cfg"] = {**reference["cfg"], "task": {"normalize": call}}
    else:
        state["extra_state"]["train_iterator"] = [call]
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert name in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not marker.exists()


def test_hostile_bin_of_a_hugging_face_folder(tmp_path):
    """``pytorch_model.bin`` is read by the same safe reader."""
    (tmp_path / "config.json").write_text('{"model_type": "wav2vec2"}')
    torch.save({"lm_head.weight": Call(os.system, f"touch {tmp_path / 'marker'}")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "marker").exists()


def test_plain_pickle_is_refused(tmp_path):
    """A pickle that torch did not write runs nothing either."""
    path = tmp_path / "plain.pkl"
    path.write_bytes(pickle.dumps({"model": Call(os.system, f"touch {tmp_path / 'marker'}")}, protocol=2))
    with pytest.raises(CheckpointError, match=r"posix\.system"):
        read_checkpoint(path)
    assert not (tmp_path / "marker").exists()


def test_allow_list_ends_with_the_reading(reference, tmp_path):
    """Reading does not change what torch allows in the rest of the process."""
    before = set(torch.serialization.get_safe_globals())  # torch keeps them in a set, whose order means nothing
    read_checkpoint(REF_TINY)
    assert set(torch.serialization.get_safe_globals()) == before


def test_reading_imports_no_framework():
    """Reading needs neither s3prl, fairseq, torchaudio, transformers nor omegaconf."""
    code = (
        "import sys, s3prl_ofa.checkpoint as c; c.load(sys.argv[1]); "
        "print([m for m in ('s3prl', 'fairseq', 'torchaudio', 'transformers', 'omegaconf') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, REF_TINY], capture_output=True, text=True, cwd=REF_TINY.parents[2]
    )
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [1, 4, 30, 200, 5_000, 0.5, 0.95, 0.9999])
def test_truncated_files(reference, tmp_path, kept, zipped):
    """A file truncated anywhere gives a CheckpointError with its name."""
    buffer = io.BytesIO()
    torch.save({"cfg": reference["cfg"], "model": reference["model"]}, buffer, _use_new_zipfile_serialization=zipped)
    data = buffer.getvalue()
    path = tmp_path / "cut.pt"
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(CheckpointError, match=r"cut\.pt"):
        load(path)


def test_compressed_zip_is_refused(tmp_path):
    """Tensors are mapped from the zip, so a compressed one must not be read as numbers."""
    path = tmp_path / "compressed.pt"
    with zipfile.ZipFile(REF_TINY) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(path)
