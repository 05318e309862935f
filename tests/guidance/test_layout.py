"""Guidance files and manifests: what is written can be read, and broken files are named."""

import contextlib
import io
import os
import pathlib
import pickle
import zipfile

import pytest
import torch

from s3prl_ofa.guidance import layout
from s3prl_ofa.guidance.layout import (
    GuidanceError,
    alpha_of,
    boundary_seconds,
    guidance_path,
    num_frames,
    read_alpha,
    read_boundaries,
    read_manifest,
    write,
)
from s3prl_ofa.pretrain.losses import frame_loss, segment_loss


@pytest.mark.parametrize(
    ("relative", "expected"),
    [
        ("v1.2/a/b.flac", "v1.2/a/b.pt"),
        ("a.b.c.wav", "a.b.c.pt"),
        ("deep/no_ending", "deep/no_ending.pt"),
        ("x.pt", "x.pt"),
        ("é ü/ß.opus", "é ü/ß.pt"),
    ],
)
def test_only_the_last_extension_goes(relative, expected):
    """The reference cuts names at the first dot, so that v1.2/a/b.flac and v1.3/c.flac share v1.pt."""
    assert guidance_path("root", relative) == pathlib.Path("root", expected)


def test_round_trip(tmp_path):
    """What is written is read: 1 / length over each segment, zero after the last; no other file is left."""
    boundaries = torch.tensor([2, 3, 7])
    write(tmp_path, "v1.2/b.flac", boundaries, 9)
    alpha = read_alpha(tmp_path / "alpha", "v1.2/b.flac")
    assert alpha.dtype == torch.float32
    assert torch.equal(alpha, torch.tensor([0.5, 0.5, 1, 0.25, 0.25, 0.25, 0.25, 0, 0]))
    found = read_boundaries(tmp_path / "boundaries", "v1.2/b.flac")
    assert found.dtype == torch.int64 and torch.equal(found, boundaries)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"b.pt"}


def test_guidance_has_no_loss(tmp_path):
    """alpha equal to the guidance has no segment loss and no frame loss."""
    write(tmp_path, "a.flac", torch.tensor([3, 4, 9, 12]), 12)
    alpha = read_alpha(tmp_path / "alpha", "a.flac")[None]
    boundaries = read_boundaries(tmp_path / "boundaries", "a.flac")[None]
    assert segment_loss(alpha, boundaries) < 1e-6 and frame_loss(alpha, alpha) == 0


def test_same_content_same_bytes(tmp_path):
    """The name, the folder and the run do not change a byte."""
    for relative in ("a.flac", "deep/b.flac"):
        write(tmp_path, relative, torch.tensor([1, 5, 6])[1:], 6)
    first, second = (tmp_path / "boundaries" / name for name in ("a.pt", "deep/b.pt"))
    assert first.read_bytes() == second.read_bytes() and first.stat().st_size < 2000


@pytest.mark.parametrize(("moment", "whole"), [("writing", True), ("between", False)])
def test_rewriting_never_leaves_a_mixed_pair(tmp_path, monkeypatch, moment, whole):
    """A pair whose rewriting is interrupted stays as it was; between the renaming of its two files it does not look
    complete."""
    write(tmp_path, "a.flac", torch.tensor([2, 4]), 4)
    assert layout.is_written(tmp_path, "a.flac")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.pt")}
    atomic_path, saved, calls = layout.atomic_path, layout.saved, []

    @contextlib.contextmanager
    def interrupted(path):
        with atomic_path(path) as temporary:
            yield temporary
        raise KeyboardInterrupt

    def fail_second(tensor):
        calls.append(tensor)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return saved(tensor)

    name, fails = ("saved", fail_second) if moment == "writing" else ("atomic_path", interrupted)
    monkeypatch.setattr(layout, name, fails)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, "a.flac", torch.tensor([1, 4]), 4)
    assert layout.is_written(tmp_path, "a.flac") == whole
    assert ({path: path.read_bytes() for path in tmp_path.rglob("*.pt")} == before) == whole


@pytest.mark.parametrize("boundaries", [[], [0, 2], [2, 2], [3, 2], [2, 5]])
def test_alpha_of_refuses(boundaries):
    """Boundaries that are empty, not increasing or beyond the frames are refused."""
    with pytest.raises(GuidanceError, match="1 to 4"):
        alpha_of(torch.tensor(boundaries, dtype=torch.long), 4)


def test_frames_and_times():
    """Frames are the front end's; a boundary lies halfway between the centers of the frames beside it."""
    assert [num_frames(samples) for samples in (0, 399, 400, 719, 720, 16_000)] == [0, 0, 1, 1, 2, 49]
    centers = torch.tensor([200, 520, 840]).double() / 16_000
    assert torch.allclose(boundary_seconds(torch.tensor([1, 2])), (centers[:-1] + centers[1:]) / 2)


class Evil:
    """Runs a command when it is unpickled without care."""

    def __reduce__(self):
        return os.system, ("touch was_here",)


def as_file(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def compressed(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    return buffer.getvalue()


GOOD = torch.tensor([0.5, 0.5, 1.0])
BROKEN = {
    "empty": (b"", "damaged"),
    "text": (b"no tensor", "damaged"),
    "cut short": (as_file(GOOD)[:-200], "damaged"),
    "compressed": (compressed(as_file(torch.zeros(100_000))), "compressed"),
    "code": (pickle.dumps(Evil(), 2), "nothing in it was run"),
    "code in a torch file": (as_file(Evil()), "nothing in it was run"),
    "dict": (as_file({"alpha": GOOD}), "holds a dict"),
    "sparse": (as_file(GOOD.to_sparse()), "plain tensor"),
    "two dimensions": (as_file(GOOD[None]), r"shape \(1, 3\)"),
    "scalar": (as_file(torch.tensor(0.5)), "shape"),
    "no frames": (as_file(torch.zeros(0)), "shape"),
    "a view that claims more than there is": (as_file(torch.zeros(1).expand(10**13)), "shape"),
    "NaN": (as_file(torch.tensor([0.5, float("nan")])), "nan"),
    "above 1": (as_file(torch.tensor([0.5, 1.5])), "1.5"),
    "below 0": (as_file(torch.tensor([0.5, -0.5])), "-0.5"),
    "whole numbers": (as_file(torch.tensor([1, 2])), "floating-point"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_alpha(tmp_path, case, monkeypatch):
    """Every broken file is one sentence that names it, and nothing in it is run."""
    data, said = BROKEN[case]
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    path.write_bytes(data)
    with pytest.raises(GuidanceError, match=said) as caught:
        read_alpha(tmp_path, "a.flac")
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.mark.parametrize("values", [[0, 3], [-1, 3], [3, 3], [4, 2], [1.0, 2.0], [True, False], [1 + 2j]])
def test_broken_boundaries(tmp_path, values):
    """Boundaries are increasing integers from 1 on."""
    torch.save(torch.tensor(values), tmp_path / "a.pt")
    with pytest.raises(GuidanceError, match="boundaries"):
        read_boundaries(tmp_path, "a.flac")


def test_missing_and_too_large(tmp_path, monkeypatch):
    """A missing file, a folder in its place, and a file of absurd size are named without being read."""
    with pytest.raises(GuidanceError, match=f"{tmp_path}/a.pt: no such file"):
        read_alpha(tmp_path, "a.flac")
    (tmp_path / "b.pt").mkdir()
    with pytest.raises(GuidanceError, match="not a file"):
        read_alpha(tmp_path, "b.flac")
    torch.save(GOOD, tmp_path / "c.pt")
    monkeypatch.setattr(layout, "MAX_BYTES", 100)
    with pytest.raises(GuidanceError, match="expected at most 100"):
        read_alpha(tmp_path, "c.flac")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_writers_files(tmp_path, dtype):
    """Other precisions, torch's old file format and 32-bit boundaries are read too."""
    torch.save(GOOD.to(dtype), tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_alpha(tmp_path, "a.flac"), GOOD)
    torch.save(torch.tensor([1, 3], dtype=torch.int32), tmp_path / "b.pt")
    assert read_boundaries(tmp_path, "b.flac").tolist() == [1, 3]


def test_manifest(tmp_path):
    """The root, and path and samples of every line; files of prepare manifest are read."""
    from s3prl_ofa.superb.prepare.manifest import write_manifest

    write_manifest(tmp_path / "m.tsv", tmp_path, {tmp_path / "v1.2" / "a b.flac": 16_000, tmp_path / "c.flac": 400})
    assert read_manifest(tmp_path / "m.tsv") == (tmp_path, [("v1.2/a b.flac", 16_000), ("c.flac", 400)])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "line 1: expected the folder"),
        ("a.flac\t16000\n", "line 1: expected the folder"),
        ("/root\na.flac\n", "line 2: expected a path, a tab"),
        ("/root\na.flac\t16000\nb.flac\tmany\n", "line 3: expected a path, a tab"),
        ("/root\na.flac\t0\n", "line 2"),
        ("/root\na.flac\t-5\n", "line 2"),
        ("/root\na.flac\t16000\n\nb.flac\t16000\n", "line 3"),
        ("/root\n../a.flac\t16000\n", "line 2: expected a path below"),
        ("/root\n/abs/a.flac\t16000\n", "line 2: expected a path below"),
        ("/root\n\t16000\n", "line 2"),
    ],
)
def test_bad_manifest(tmp_path, text, said):
    """An invalid manifest is refused with file and line, as is a path that leads out of the folder."""
    path = tmp_path / "m.tsv"
    path.write_text(text)
    with pytest.raises(GuidanceError, match=said) as caught:
        read_manifest(path)
    assert str(caught.value).startswith(str(path))


def test_manifest_that_is_no_text(tmp_path):
    """A missing manifest, a folder, and bytes that are not UTF-8 are named."""
    (tmp_path / "m.tsv").write_bytes(b"/root\n\xff\xfe.flac\t16000\n")
    for path, said in ((tmp_path / "m.tsv", "UTF-8"), (tmp_path, "cannot be read"), (tmp_path / "no", "cannot be")):
        with pytest.raises(GuidanceError, match=said):
            read_manifest(path)
