"""Reads the two file formats of ``torch.save``: zip archives, and before PyTorch 1.6 pickles followed by raw data.

Both are mapped into memory, and every record is checked before it is used: its position, its size against that of the
storage in the pickle, and its checksum, except in the older format, which has none.
"""

import io
import mmap
import os
import pathlib
import struct
import zipfile
import zlib

import torch
from torch import Tensor

from s3prl_ofa.checkpoint.safe_pickle import MAX_PICKLE, Storage, explain, read_pickle
from s3prl_ofa.errors import CheckpointError, shown

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = b"\x80"
MAX_DIRECTORY = 2**22  # bytes of a zip's list of records, some 100 per record
LOCAL_HEADER = struct.Struct("<4s2xHH16xHH")  # of a record: magic, flags, method, lengths of its name and extra field
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001


def read_torch_file(path: str | os.PathLike, for_torch: bool = False) -> object:
    """What ``torch.save`` wrote to ``path``; its tensors are ``StoredTensor``, mapped from the file.

    Nothing in the file is run. Values may hold stand-ins, which ``plain`` turns into a configuration. The checksums of
    all records take 0.1 s for Base (380 MB), a seventh of ``load``. Raises CheckpointError, without the file's name,
    for a file that is damaged, that names anything outside the table, or whose tensors claim more than it holds.
    for_torch: see ``read_pickle``.
    """
    with pathlib.Path(path).open("rb") as file:
        try:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # fails for an empty file
            if mapped[: len(ZIP_MAGIC)] == ZIP_MAGIC:
                return read_zip(file, mapped, for_torch)
            if mapped[:1] != PICKLE_MAGIC:
                raise CheckpointError(f"damaged: it begins with {mapped[:8]!r}; expected what torch.save writes")
            return read_legacy(mapped, for_torch)
        except (CheckpointError, OSError):
            raise
        except Exception as error:  # a damaged pickle or zip can raise any kind of exception
            raise CheckpointError(explain(error)) from error


def check_torch_file(path: str | os.PathLike) -> None:
    """Checks a file before ``torch.load(weights_only=True)``, which runs nothing but has no bounds.

    Raises CheckpointError for a file that is damaged or could take unlimited time or memory. torch checks the names.
    """
    read_torch_file(path, for_torch=True)


def as_tensor(mapped: mmap.mmap) -> Tensor:
    """The file's bytes, without a copy."""
    return torch.frombuffer(mapped, dtype=torch.uint8)


# --- zip ---


class Directory(io.BufferedReader):
    """A file from which zipfile reads the list of records, up to MAX_DIRECTORY."""

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise CheckpointError(f"its list of records is {size} bytes long; expected at most {MAX_DIRECTORY}")
        return super().read(MAX_DIRECTORY if size is None or size < 0 else size)


def read_zip(file: io.BufferedReader, mapped: mmap.mmap, for_torch: bool) -> object:
    records = zip_records(file, mapped)
    pickles = [name for name in records if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise CheckpointError(f"a zip archive with {len(pickles)} records data.pkl; expected one, as torch.save writes")
    root = pickles[0].removesuffix("data.pkl")
    order = records.get(f"{root}byteorder")
    if order is not None and mapped[order.start : order.stop] != b"little":
        raise CheckpointError("its numbers are big-endian; save it on a little-endian machine")
    where = records[pickles[0]]
    if len(where) > MAX_PICKLE:
        raise CheckpointError(f"its pickle is {len(where)} bytes long; expected at most {MAX_PICKLE}")
    data: dict[str, Tensor] = {}
    storages: dict[str, Storage] = {}
    state = read_pickle(io.BytesIO(mapped[where.start : where.stop]), data, storages, for_torch)
    numbers = as_tensor(mapped)
    for key, storage in storages.items():
        record = records.get(f"{root}data/{key}")
        if record is None or len(record) != storage.nbytes:
            found = "missing" if record is None else f"{len(record)} bytes long"
            raise CheckpointError(f"the record {shown(f'data/{key}')} is {found}; expected {storage.nbytes} bytes")
        data[key] = numbers[record.start : record.stop]
    return state


def zip_records(file: io.BufferedReader, mapped: mmap.mmap) -> dict[str, range]:
    """The position of each record of the archive. Raises CheckpointError for a damaged archive.

    It checks exactly what is read later: each record is uncompressed, overlaps no other, and has the name and the
    checksum that the list at the end of the archive gives.
    """
    records: dict[str, range] = {}
    with zipfile.ZipFile(Directory(file.raw)) as archive:
        entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
        start_of_directory = archive.start_dir
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise CheckpointError("a TorchScript archive; expected the weights of a model")
    # With torch.serialization.set_crc32_options(False) all of them are 0.
    has_checksums = any(entry.CRC for entry in entries)
    end = 0
    view = memoryview(mapped)
    for entry in entries:
        name = shown(entry.filename)
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1 or entry.file_size != entry.compress_size:
            raise CheckpointError(f"the zip entry {name} is compressed; expected a file as torch.save writes")
        begin = entry.header_offset
        magic, flags, method, name_length, extra_length = LOCAL_HEADER.unpack_from(view, begin)
        raw_name = entry.orig_filename.encode("utf-8" if entry.flag_bits & 0x800 else "cp437")
        name_end = begin + LOCAL_HEADER.size + name_length
        if magic != ZIP_MAGIC or flags & 1 or method or view[begin + LOCAL_HEADER.size : name_end] != raw_name:
            raise CheckpointError(f"the zip entry {name} is not where the archive's list says: damaged")
        where = range(name_end + extra_length, name_end + extra_length + entry.file_size)
        if begin < end or where.stop > start_of_directory or entry.filename in records:
            raise CheckpointError(f"the zip entry {name} appears twice, overlaps another or is cut short: damaged")
        if has_checksums and zlib.crc32(view[where.start : where.stop]) != entry.CRC:
            raise CheckpointError(f"the zip entry {name} does not match its checksum: damaged")
        records[entry.filename] = where
        end = where.stop
    return records


# --- before PyTorch 1.6 ---


def read_legacy(mapped: mmap.mmap, for_torch: bool) -> object:
    """Five pickles (magic number, version, machine, object, keys of the storages), then each storage's numbers."""
    file = io.BytesIO(mapped[:MAX_PICKLE])
    data: dict[str, Tensor] = {}
    storages: dict[str, Storage] = {}
    head = [read_pickle(file, {}, {}) for _ in range(3)]
    if head[:2] != [LEGACY_MAGIC, LEGACY_VERSION]:
        raise CheckpointError("a pickle, but not one that torch.save writes")
    if head[2]["little_endian"] is not True:
        raise CheckpointError("its numbers are big-endian; save it on a little-endian machine")
    state, keys = read_pickle(file, data, storages, for_torch), read_pickle(file, {}, {})
    if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(storages):
        raise CheckpointError(f"its list of storages is {shown(keys)}; expected the {len(storages)} of its tensors")
    numbers, end = as_tensor(mapped), file.tell()
    for key in keys:
        storage = storages[key]
        begin, end = end + 8, end + 8 + storage.nbytes
        if int.from_bytes(mapped[begin - 8 : begin], "little") != storage.numel:
            raise CheckpointError(f"the storage {shown(key)} does not have {storage.numel} numbers: damaged")
        data[key] = numbers[begin:end]
    if end != len(mapped):
        raise CheckpointError(f"{len(mapped)} bytes long; its storages end at byte {end}: damaged")
    return state
