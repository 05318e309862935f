"""A short run of ``python -m tests.hostile``, and regression tests of what it found."""

import io
import json
import pathlib
import struct
import zipfile
import zlib

import hostile
import pytest
import torch
from hostile_files import pickle_ends, rebuilt, records_of, saved, with_header
from hostile_pickles import pickles
from models import CONFIGS, GOLDEN_CONFIG, golden_weights, random_weights
from paths import REF_TINY

from s3prl_ofa.checkpoint import convert, load, read_checkpoint
from s3prl_ofa.checkpoint.torch_file import check_torch_file, read_torch_file
from s3prl_ofa.errors import LONGEST_SHOWN, CheckpointError, shown
from s3prl_ofa.model import OFAWav2Vec2
from s3prl_ofa.model.names import weight_shapes
from s3prl_ofa.model.storage import FORMAT, write_safetensors
from s3prl_ofa.superb.registration import ofa_wav2vec2_local

ENDLESS = {  # attacks that torch would carry out, and what our reader says of them
    "punycode": "bytes are made from .*, which torch.save does not write",
    "many instructions": "its pickle has more than 250000 instructions; expected a model",
    "300,000 empty tensors": "its pickle has more than 250000 instructions; expected a model",
}
FC1 = "encoder.layers.0.fc1.weight"


@pytest.mark.slow
def test_attacks_and_mutations():
    """All hand-made attacks are refused; mutated files load unchanged or give one sentence; nothing is run or grows."""
    table = hostile.attack(count=200, seed=0)
    assert not table.pop("findings")
    assert set(table.pop(("hand-made", "all"))) == {"refused"}
    outcomes = sum(table.values(), start=type(next(iter(table.values())))())
    assert outcomes["loaded"] > 0 and outcomes["refused"] > 0 and sum(outcomes.values()) == 200


@pytest.mark.parametrize("read", [read_torch_file, check_torch_file])
@pytest.mark.parametrize("attack", ENDLESS)
def test_endless_work_is_refused_by_itself(tmp_path, attack, read):
    """Work without bounds is refused by its own bound, when we read a file and before torch does."""
    path = tmp_path / "endless.pt"
    path.write_bytes(pickles()[attack])
    with pytest.raises(CheckpointError, match=ENDLESS[attack]):
        read(path)


def test_tensors_that_torch_makes_by_other_means(tmp_path):
    """A sparse tensor, whose size says nothing about what is stored, does not reach torch."""
    torch.save({"weight": torch.ones(2, 2).to_sparse()}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match="^refused, because it asks to .*_rebuild_sparse_tensor"):
        check_torch_file(tmp_path / "odd.pt")


@pytest.mark.slow  # coverage in its processes takes the time and memory that it measures
def test_the_harness_sees_what_it_looks_for(tmp_path, monkeypatch):
    """The harness reports errors of other types, long messages, slow reading, large memory and code that runs."""
    events: list[str] = []

    def found(load):
        monkeypatch.setattr(hostile, "load", load)
        return hostile.outcome(tmp_path / "x.pt", 100, None, events)

    def refuse(message):
        raise CheckpointError(f"{tmp_path / 'x.pt'}: {message}")

    assert found(lambda path: {}["name"]).startswith("KeyError")
    assert found(lambda path: refuse("no")) == "refused"
    assert found(lambda path: refuse("no " * 1_000)).startswith("Message of 3000")
    assert found(lambda path: refuse("a\nb")).startswith("Message")
    assert found(lambda path: events.append("os.system") or refuse("no")) == "Ran os.system"
    monkeypatch.setattr(hostile, "MAX_MEMORY", 10**7)
    assert found(lambda path: bytearray(10**8) and refuse("no")).startswith("Memory: 0.1")
    monkeypatch.setattr(hostile, "MAX_SECONDS", 0.0)
    assert found(lambda path: refuse("no")).startswith("Slow")
    assert hostile.is_finding("reference", "bytes", "changed") and hostile.is_finding(None, "a name", "loaded")
    assert not hostile.is_finding("legacy", "bytes", "changed") and hostile.is_finding("legacy", "cut", "KeyError: x")


# --- damage ---


def test_each_halved_record_is_refused(tmp_path):
    """A record cut to its first half, with a matching checksum, is named."""
    records, path = records_of(REF_TINY.read_bytes()), tmp_path / "half.pt"
    for name in (f"archive/data/{index}" for index in range(len(golden_weights()))):
        path.write_bytes(rebuilt(records | {name: records[name][: len(records[name]) // 2]}))
        with pytest.raises(
            CheckpointError, match=f"record '{name.removeprefix('archive/')}' is .* bytes long; expected"
        ):
            read_checkpoint(path)


def test_each_record_is_held_to_its_checksum(tmp_path):
    """One flipped bit in any record, or in its checksum, is refused with the record's name."""
    data, path = REF_TINY.read_bytes(), tmp_path / "bit.pt"
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        places = {entry.filename: data.index(archive.read(entry), entry.header_offset) for entry in entries}
    for entry in entries:
        changed = bytearray(data)
        changed[places[entry.filename] + entry.file_size // 2] ^= 1
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match=f"entry '{entry.filename}' does not match its checksum"):
            read_checkpoint(path)
    path.write_bytes(data.replace(zlib.crc32(b"little").to_bytes(4, "little"), b"\1\2\3\4"))
    with pytest.raises(CheckpointError, match="byteorder' does not match its checksum"):
        read_checkpoint(path)


def test_files_written_without_checksums_are_read(tmp_path, reference):
    """A file without checksums (torch.serialization.set_crc32_options(False)) is read; its sizes are still checked."""
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(reference, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert same_weights(read_checkpoint(tmp_path / "x.pt").weights, golden_weights())


def test_the_list_of_records_is_held_to_the_records(tmp_path, reference):
    """Without checksums too: records that run into the list or the next one, or that are exchanged, are refused."""
    path, entries = tmp_path / "x.pt", {}
    torch.serialization.set_crc32_options(False)
    try:
        data = saved(reference)
    finally:
        torch.serialization.set_crc32_options(True)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        place = archive.start_dir
        for entry in archive.infolist():
            entries[entry.filename] = place
            place += 46 + len(entry.filename) + len(entry.extra) + len(entry.comment)
    first, second, final = entries["archive/data/0"], entries["archive/data/1"], max(entries.values())

    def changed(place, size=None, offset=None):
        content = bytearray(data)
        if size is not None:
            content[place + 20 : place + 28] = struct.pack("<II", size, size)
        if offset is not None:
            content[place + 42 : place + 46] = data[offset + 42 : offset + 46]
        return bytes(content)

    for content, said in (
        (changed(final, size=2**20), "is cut short: damaged"),
        (changed(first, size=4_000), "overlaps another"),
        (changed(first, offset=second), "is not where the archive's list says"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            read_checkpoint(path)


def test_records_that_are_not_aligned_are_read(tmp_path):
    """A repacked, uncompressed archive with records at any position gives the same weights."""
    (tmp_path / "x.pt").write_bytes(rebuilt(records_of(REF_TINY.read_bytes())))
    assert same_weights(read_checkpoint(tmp_path / "x.pt").weights, golden_weights())


def test_each_cut_of_a_legacy_storage_is_refused(tmp_path, reference):
    """The older format has no checksums; the sizes of its storages and its end are checked."""
    data, path = saved({"cfg": reference["cfg"], "model": reference["model"]}, zipped=False), tmp_path / "x.pt"
    end = pickle_ends(data)[-1]
    for changed in (data[:-1], data + b"\0", data[:end] + data[end + 8 :], data[:end] + bytes(8) + data[end + 8 :]):
        path.write_bytes(changed)
        with pytest.raises(CheckpointError, match="damaged"):
            read_checkpoint(path)


def same_weights(found, expected):
    return set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


# --- values ---


@pytest.mark.parametrize(
    ("name", "stored", "dtype", "value", "said"),
    [
        (FC1, torch.float64, torch.float32, 1e300, r"1e\+300"),
        (FC1, torch.float32, torch.float16, 1e5, "100000"),
        (FC1, torch.float64, torch.bfloat16, -3.4e38, r"-3\.4e\+38"),
        ("encoder.pos_conv.0.weight", torch.float64, torch.float32, 1e300, r"-?\d\.\d+e\+299"),
        ("encoder.pos_conv.0.weight", torch.float64, torch.float64, 1e300, "holds inf"),
    ],
)
def test_weights_that_the_dtype_cannot_hold_are_refused(tmp_path, name, stored, dtype, value, said):
    """Weights that overflow in the model's dtype are refused with name and value, also after merging weight norm."""
    weights = {key: weight.to(stored) for key, weight in golden_weights().items()}
    place = f"{name}_g" if dtype != torch.float64 and "pos_conv" in name else name.replace("0.weight", "0.weight_v")
    place = name if place not in weights else place
    weights[place].view(-1)[0] = value
    write_safetensors(tmp_path / "x.safetensors", GOLDEN_CONFIG, weights)
    with pytest.raises(CheckpointError, match=f"x.safetensors: the weight {name}.* {said}"):
        load(tmp_path / "x.safetensors", dtype=dtype)


def test_the_upstream_refuses_weights_that_are_infinite_in_its_dtype(tmp_path):
    """S3PRL's upstream is float32: a checkpoint with 1e300 in float64 is refused before anything is trained on it."""
    weights = {key: weight.double() for key, weight in golden_weights().items()}
    weights[FC1].view(-1)[0] = 1e300
    write_safetensors(tmp_path / "x.safetensors", GOLDEN_CONFIG, weights)
    with pytest.raises(CheckpointError, match=rf"the weight {FC1} holds 1e\+300"):
        ofa_wav2vec2_local(tmp_path / "x.safetensors")


def test_the_largest_value_of_a_dtype_is_taken(tmp_path):
    """A value that rounds to the largest number of the dtype is no overflow; one that rounds beyond it is."""
    weights = golden_weights()
    for value, fits in ((65_519.0, True), (65_520.0, False)):
        weights[FC1].view(-1)[0] = value
        write_safetensors(tmp_path / "x.safetensors", GOLDEN_CONFIG, weights)
        if fits:
            assert load(tmp_path / "x.safetensors", dtype=torch.float16).weights()[FC1].view(-1)[0] == 65_504
        else:
            with pytest.raises(CheckpointError, match="holds 65520"):
                load(tmp_path / "x.safetensors", dtype=torch.float16)


def test_a_weight_norm_that_its_dtype_cannot_hold_is_refused(tmp_path):
    """Norms of a positional convolution that overflow in float16 are refused, not written as inf."""
    model = load(REF_TINY)
    weights = {name: weight.half() for name, weight in model.weights().items()}
    weights["encoder.pos_conv.0.weight"].fill_(60_000.0)
    write_safetensors(tmp_path / "x.safetensors", model.config, weights)
    with pytest.raises(CheckpointError, match=r"x\.safetensors: the weight encoder\.pos_conv\.0\.weight_g holds"):
        convert(tmp_path / "x.safetensors", tmp_path / "x.pt")


def test_weights_that_only_pretraining_uses(tmp_path):
    """load passes over them, whatever they hold; convert, which keeps them, refuses those that are not finite."""
    source, target = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    for values, fits in ((torch.zeros(0), True), (torch.full((32,), torch.nan), False)):
        write_safetensors(source, GOLDEN_CONFIG, golden_weights() | {"mask_emb": values})
        load(source)
        if fits:
            assert torch.equal(read_checkpoint(convert(source, target)).weights["mask_emb"], values)
        else:
            with pytest.raises(CheckpointError, match="the weight mask_emb holds nan"):
                convert(source, target, force=True)


# --- sizes and messages ---


@pytest.mark.parametrize("name", [*CONFIGS, "golden"])
def test_shapes_of_a_configuration(name):
    """The shapes that files are checked against are those of the model, for all variants."""
    config = CONFIGS.get(name, GOLDEN_CONFIG)
    assert weight_shapes(config) == {key: tuple(w.shape) for key, w in OFAWav2Vec2(config).weights().items()}


def test_sizes_are_bounded(tmp_path, reference):
    """Pickles, headers and numbers of weights that no model has are refused before they are read on."""
    path, records = tmp_path / "x", records_of(REF_TINY.read_bytes())
    many = {str(index): torch.zeros(0) for index in range(5_001)}
    tensors = {name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in many}
    ours = {"format": FORMAT, "config": json.dumps(GOLDEN_CONFIG.to_dict())}
    for content, said in (
        (rebuilt(records | {"archive/data.pkl": bytes(2**25 + 1)}), "its pickle is 33554433 bytes long; expected at"),
        (
            with_header({"__metadata__": {"x": "x" * 2**22}}, b""),
            "a safetensors header of 4194[0-9]+ bytes; expected at",
        ),
        (saved({"cfg": reference["cfg"], "model": many}), "holds 5001 weights; expected at most 5000"),
        (with_header({"__metadata__": ours} | tensors, b""), "holds 5001 weights; expected at most 5000"),
    ):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=said):
            read_checkpoint(path)


def test_a_final_dim_is_bounded(tmp_path):
    """A configuration cannot make the added weights of fairseq's format arbitrarily large."""
    for value in (2**40, -1, "many"):
        write_safetensors(
            tmp_path / "x.safetensors",
            CONFIGS["base"],
            random_weights(CONFIGS["base"]),
            {"model_cfg": f'{{"final_dim": "{value}"}}'},
        )
        with pytest.raises(CheckpointError, match=r"x\.safetensors: its final_dim is"):
            convert(tmp_path / "x.safetensors", tmp_path / "x.pt")


def test_values_are_shown_short():
    """The repr in messages is bounded for long, nested, recursive and shared values."""
    loop: list = []
    loop.append(loop)
    tree: tuple = (1,)
    for _ in range(60):
        tree = (tree, tree)
    for value in ("x" * 10**6, loop, tree, [tree] * 100, {"key": tree}, b"x" * 10**6, 2**2000, {"x" * 10**6: 1}):
        assert len(shown(value)) <= LONGEST_SHOWN + 3 and "\n" not in shown(value)
    assert shown("gelu") == "'gelu'" and shown((32, 1, 10)) == "(32, 1, 10)"


@pytest.mark.parametrize("to", ["safetensors", "fairseq", "s3prl", "huggingface"])
def test_files_are_written_with_one_mode(tmp_path, to):
    """All files that convert writes have the usual permissions of new files."""
    load(REF_TINY).save(tmp_path / "own.safetensors")
    source = REF_TINY if to != "huggingface" else plain(tmp_path)
    target = convert(source, tmp_path / "out", to=to)
    (tmp_path / "new").touch()
    files = [target, *target.iterdir()][1:] if target.is_dir() else [target]
    assert {file.stat().st_mode for file in files} == {(tmp_path / "new").stat().st_mode}


def plain(folder: pathlib.Path) -> pathlib.Path:
    checkpoint = read_checkpoint(REF_TINY)
    weights = {name: weight for name, weight in checkpoint.weights.items() if not name.startswith("cif_")}
    config = type(checkpoint.config)(**checkpoint.config.to_dict() | {"compressor": "none"})
    write_safetensors(folder / "plain.safetensors", config, weights)
    return folder / "plain.safetensors"
