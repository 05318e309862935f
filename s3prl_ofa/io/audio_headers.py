"""How many bytes of samples the header of an audio file declares, and how many are present.

libsndfile ignores the difference and reads a file that was cut short as a shorter one.
"""

import os
import struct
from typing import BinaryIO

# Byte orders of formats made of chunks, each with a name and a size: WAV and its variants, AIFF and 8SVX.
BYTE_ORDERS = {b"RIFF": "<", b"RIFX": ">", b"RF64": "<", b"FORM": ">"}
SAMPLE_CHUNKS = {b"data", b"SSND", b"BODY"}
LARGEST_OGG_PAGE = 27 + 255 + 255 * 255  # bytes
NIST_CODINGS = ("pcm", "ulaw", "mu-law", "alaw")  # those with a fixed number of bytes per sample
NIST_HEADER = 1024  # bytes


def sample_bytes(path: str | os.PathLike) -> tuple[int, int]:
    """(declared, present) of WAV, AIFF, 8SVX, AU, W64, CAF and NIST files and of the last page of Ogg; else (0, 0).

    An Ogg file that was cut between two pages cannot be told from one that ends there.
    """
    with open(path, "rb") as file:
        start = file.read(12)
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(len(start))
        if start[:4] in BYTE_ORDERS:
            return in_chunks(file, size, BYTE_ORDERS[start[:4]])
        if start[:4] in (b".snd", b"dns.") and len(start) == 12:
            offset, declared = struct.unpack(">II" if start[:4] == b".snd" else "<II", start[4:])
            return declared, size - offset
        if start[:4] == b"riff":
            return in_wave64(file, size)
        if start[:4] == b"caff":
            return in_caf(file, size)
        if start[:7] == b"NIST_1A":
            return in_nist(file, size)
        if start[:4] == b"OggS":
            return in_ogg(file, size)
    return 0, 0


def in_chunks(file: BinaryIO, size: int, order: str) -> tuple[int, int]:
    long_size = 0  # of the samples, where 32 bits are too few
    while len(head := file.read(8)) == 8:
        name, length = struct.unpack(f"{order}4sI", head)
        start = file.tell()
        if name in SAMPLE_CHUNKS:
            declared, present = long_size or length, size - start
            return declared, present + (declared == present + 1)  # some writers count the padding byte
        if not any(name):
            break  # zeros, not a chunk; skipping them eight bytes at a time would take long
        if name == b"ds64" and len(sizes := file.read(16)) == 16:
            long_size = struct.unpack("<QQ", sizes)[1]
        file.seek(start + length + length % 2)
    return 0, 0


def in_wave64(file: BinaryIO, size: int) -> tuple[int, int]:
    """Names are GUIDs of 16 bytes, sizes include the 24 bytes of name and size, chunks begin at multiples of 8."""
    file.seek(40)
    while len(head := file.read(24)) == 24:
        length = struct.unpack("<Q", head[16:])[0]
        if head[:4] == b"data":
            return max(0, length - 24), size - file.tell()
        end = file.tell() - 24 + length + -length % 8
        if length < 24 or end > size:
            break
        file.seek(end)
    return 0, 0


def in_caf(file: BinaryIO, size: int) -> tuple[int, int]:
    file.seek(8)
    while len(head := file.read(12)) == 12:
        name, length = struct.unpack(">4sQ", head)  # signed, but -1 (unknown) is a placeholder when unsigned too
        if name == b"data":
            return length, size - file.tell()
        if not any(name) or file.tell() + length > size:
            break
        file.seek(file.tell() + length)
    return 0, 0


def in_nist(file: BinaryIO, size: int) -> tuple[int, int]:
    """The header's lines hold a name, a type and a value; its second line is its length."""
    file.seek(0)
    lines = file.read(NIST_HEADER).decode("latin-1").split("\n")
    rows = [line.split(None, 2) for line in lines]
    fields = {row[0]: row[2].strip() for row in rows if len(row) == 3}
    try:
        if fields.get("sample_coding", "pcm").lower() not in NIST_CODINGS:
            return 0, 0
        sample = int(fields["sample_n_bytes"]) * int(fields.get("channel_count", 1))
        return int(fields["sample_count"]) * sample, size - int(lines[1])
    except (KeyError, ValueError, IndexError):
        return 0, 0


def in_ogg(file: BinaryIO, size: int) -> tuple[int, int]:
    """Bytes of the last page: a file that was cut usually ends within a page."""
    file.seek(max(0, size - LARGEST_OGG_PAGE))
    tail = file.read()
    at = tail.rfind(b"OggS")
    if at < 0:
        return 0, 0
    page = tail[at:]
    segments = page[26] if len(page) > 26 else 0  # their lengths are in the page's header, which may be cut too
    return 27 + segments + sum(page[27 : 27 + segments]), len(page)


def ogg_fault(path: str | os.PathLike) -> str | None:
    """What is wrong with the pages of an Ogg file (RFC 3533); None for other files.

    libsndfile passes over pages that are missing, and ends with the first of several recordings in one file.
    """
    following: dict[int, int] = {}  # the number of the next page of each stream
    begun = False
    with open(path, "rb") as file:
        while len(head := file.read(27)) == 27 and head[:4] == b"OggS":
            flags, stream, number, segments = struct.unpack("<5xB8xII4xB", head)
            is_first = bool(flags & 2)
            if begun and is_first:
                return "it holds several recordings, one after the other; divide it"
            if number != following.get(stream, number):
                return f"its page {following[stream]} is missing"
            begun = begun or not is_first
            following[stream] = number + 1
            file.seek(sum(file.read(segments)), os.SEEK_CUR)
        return "bytes between its pages are damaged" if following and b"OggS" in file.read() else None


def is_placeholder(size: int) -> bool:
    """Whether a header's size means "unknown", as written by programs that cannot seek in their output: 0, or the
    largest number of 64, 32 or 31 bits, sometimes less the header's size or rounded to whole blocks."""
    return size == 0 or any(-0x1_0000 <= size - 2**bits <= 0 for bits in (31, 32, 63, 64))
