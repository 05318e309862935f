"""Attacks on the checkpoint reader: ``python -m tests.hostile --mutations 20000``.

Loads every hand-made file of ``hostile_files`` and random mutations of good files of each format, each in a worker
process. Anything but success or a CheckpointError of one bounded sentence is a finding: code that was run, more than 5
s of work, more memory than twice the file plus 1 GB, another type of error, a crash; and a mutated ``.pt`` archive that
loads as a different model, which its checksums should prevent. Exits with status 1 on a finding and keeps the file.
"""

import argparse
import collections
import itertools
import multiprocessing
import os
import pathlib
import pickletools
import random
import re
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import torch

sys.path.insert(0, os.fspath(pathlib.Path(__file__).parent))  # as pytest has it: tests import their siblings by name

from hostile_files import (  # noqa: E402
    Files,
    attacks,
    header_of,
    pickle_ends,
    plain_folder,
    rebuilt,
    records_of,
    saved,
    with_header,
)
from paths import REF_TINY  # noqa: E402

from s3prl_ofa.checkpoint import Checkpoint, convert, load, read_checkpoint  # noqa: E402
from s3prl_ofa.errors import CheckpointError  # noqa: E402

MAX_SECONDS, MAX_WAIT = 5.0, 60.0  # of the worker's own time; of the clock, on a machine that may be busy
MAX_MEMORY = 10**9  # bytes beyond twice the file
MAX_MESSAGE = 2_000  # characters, beside the path
WATCHED = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
NUMBERS = (0, 1, 2, 7, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1)
TEXTS = (b"0", b"-1", b"1e999", b"9999999999999", b"null", b"true", b"[]", b'"x"', b"{}", b"[[[[1]]]]", b"2.5")
OPCODES = bytes(opcode.code.encode("latin-1")[0] for opcode in pickletools.opcodes)


# --- mutations ---


def flipped(data: bytes, draw: random.Random, sensitive: int) -> bytes:
    """A few bytes changed, most often among the first or last ``sensitive`` ones."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place = draw.randrange(len(data))
        if draw.random() < 0.7:
            place = draw.randrange(min(sensitive, len(data))) * draw.choice((1, -1))
        changed[place] = draw.choice((draw.randrange(256), changed[place] ^ 1 << draw.randrange(8), 0, 255))
    return bytes(changed)


def cut(data: bytes, draw: random.Random, sensitive: int) -> bytes:
    start, length = draw.randrange(len(data)), draw.choice((1, 4, 64, 4096, len(data) // 2))
    return draw.choice(
        (
            data[:start],
            data[:start] + data[start + length :],
            data[:start] + data[start : start + length] * 2 + data[start + length :],
            data + data[start : start + length],
            data[:start] + bytes(len(data[start : start + length])) + data[start + length :],
        )
    )


def renumbered(data: bytes, draw: random.Random, sensitive: int) -> bytes:
    """A number of a header: of a zip's list or local headers, or anywhere among the sensitive bytes."""
    headers = [match.start() for match in re.finditer(rb"PK[\1\3\5\6][\2\4\6\7\10]", data)]
    size = draw.choice((2, 4, 8))
    place = draw.choice(headers) + draw.randrange(4, 60) if headers else draw.randrange(min(sensitive, len(data)))
    value = draw.choice(NUMBERS) if draw.random() < 0.8 else draw.getrandbits(63)
    return data[:place] + (value % 256**size).to_bytes(size, "little") + data[place + size :]


def repickled(pickle: bytes, draw: random.Random) -> bytes:
    """One to three instructions removed, doubled, moved, replaced, or given another number or text."""
    starts = [place for _, _, place in pickletools.genops(pickle)]
    pieces = [pickle[start:end] for start, end in zip(starts, [*starts[1:], len(pickle)], strict=True)]
    for _ in range(draw.choice((1, 1, 3))):
        place, other = draw.randrange(len(pieces)), draw.randrange(len(pieces))
        piece = pieces[place]
        choices = [b"", piece * 2, pieces[other], bytes([draw.choice(OPCODES)]), piece[:1]]
        if piece[:1] in (b"K", b"M", b"J"):
            choices += [b"J" + struct.pack("<I", draw.choice(NUMBERS)), b"\x8a\x09" + draw.randbytes(9)] * 3
        if piece[:1] == b"X":
            choices += [b"X" + struct.pack("<I", len(value)) + value for value in (*TEXTS, b"x" * 5000)]
        pieces[place] = draw.choice(choices)
    return b"".join(pieces)


def rezipped(data: bytes, draw: random.Random) -> bytes:
    """Records halved, dropped, exchanged, emptied or made longer, or the pickle changed; with checksums that fit."""
    records = records_of(data)
    place, other = draw.choice(list(records)), draw.choice(list(records))
    kind = draw.choice(("pickle", "pickle", "pickle", "half", "drop", "exchange", "longer", "rename"))
    if kind == "pickle":
        place = next(key for key in records if key.endswith("/data.pkl"))
        records[place] = repickled(records[place], draw)
    elif kind == "half":
        records[place] = records[place][: len(records[place]) // 2]
    elif kind == "drop":
        del records[place]
    elif kind == "exchange":
        records[place], records[other] = records[other], records[place]
    elif kind == "longer":
        records[place] += bytes(draw.choice((1, 4, 4096)))
    else:
        records[f"{place}0"] = records.pop(place)
    return rebuilt(records)


def repickled_legacy(data: bytes, draw: random.Random) -> bytes:
    start, end = draw.choice(list(itertools.pairwise((0, *pickle_ends(data)))))
    return data[:start] + repickled(data[start:end], draw) + data[end:]


def rewritten(data: bytes, draw: random.Random) -> bytes:
    """A value of some JSON replaced."""
    values = list(re.finditer(rb'-?\d+(\.\d+)?|true|false|null|"[^"]*"', data))
    value = draw.choice(values)
    return data[: value.start()] + draw.choice(TEXTS) + data[value.end() :]


def reheaded(data: bytes, draw: random.Random) -> bytes:
    """A value of a safetensors header, or of the JSON in its metadata, replaced."""
    header, payload = header_of(data)
    if draw.random() < 0.5 and "config" in header.get("__metadata__", {}):
        key = draw.choice(("config", "model_cfg", "task_cfg"))
        header["__metadata__"][key] = rewritten(header["__metadata__"][key].encode(), draw).decode()
        return with_header(header, payload)
    length = int.from_bytes(data[:8], "little")
    changed = rewritten(data[8 : 8 + length], draw)
    return len(changed).to_bytes(8, "little") + changed + payload


def mutations(originals: dict[str, Files], count: int, seed: int) -> Iterator[tuple[str, str, Files]]:
    """(name of the original, kind of mutation, files), ``count`` times, the same for the same seed."""
    for index in range(count):
        draw = random.Random(f"{seed} {index}")
        source = draw.choice(list(originals))
        files = dict(originals[source])
        file = draw.choice(sorted(files))
        data, sensitive = files[file], 20_000
        kinds: dict[str, Any] = {"bytes": flipped, "cut": cut, "numbers": renumbered}
        if data.startswith(b"PK"):
            kinds["archive"] = lambda data, draw, _: rezipped(data, draw)
        elif data.startswith(b"\x80"):
            kinds["pickle"] = lambda data, draw, _: repickled_legacy(data, draw)
        elif file.endswith(".json"):
            kinds["json"] = lambda data, draw, _: rewritten(data, draw)
        else:
            kinds["header"] = lambda data, draw, _: reheaded(data, draw)
        kind = draw.choice([*kinds, list(kinds)[-1]])
        files[file] = kinds[kind](data, draw, sensitive)
        yield source, kind, files


def good_files(folder: pathlib.Path) -> dict[str, Files]:
    """One small model of each format."""
    whole = torch.load(REF_TINY, weights_only=True)
    state = {"cfg": whole["cfg"], "model": whole["model"]}
    made = {
        "reference": REF_TINY.read_bytes(),
        "s3prl": convert(REF_TINY, folder / "x.pt", to="s3prl").read_bytes(),
        "legacy": saved(state, zipped=False),
        "safetensors": convert(REF_TINY, folder / "x.safetensors").read_bytes(),
    }
    return {**{name: {"file": data} for name, data in made.items()}, "huggingface": plain_folder(folder)}


# --- one file ---


def write(files: Files, place: pathlib.Path) -> pathlib.Path:
    """The file at ``place``, or the folder there."""
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    if list(files) == ["file"]:
        place.write_bytes(files["file"])
        return place
    place.mkdir()
    for name, data in files.items():
        (place / name).write_bytes(data)
    return place


def peak_memory() -> int:
    """The most memory in bytes that this process had since the last call (on Linux; elsewhere 0)."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status).group(1))


def same(one: Checkpoint, other: Checkpoint) -> bool:
    return (one.config, set(one.weights)) == (other.config, set(other.weights)) and all(
        torch.equal(weight, other.weights[name]) for name, weight in one.weights.items()
    )


def outcome(path: pathlib.Path, size: int, good: Checkpoint | None, events: list[str]) -> str:
    """How loading it ended: loaded, changed, refused, or what is wrong, beginning with a capital letter."""
    events.clear()
    before, started = peak_memory(), time.process_time()
    before = peak_memory()
    try:
        load(path)
        checkpoint = read_checkpoint(path)
        result = "loaded" if good is None or same(good, checkpoint) else "changed"
    except CheckpointError as error:
        message = str(error).removeprefix(f"{path}: ")
        result = "refused"
        if len(message) > MAX_MESSAGE or "\n" in message or not str(error).startswith(f"{path}: "):
            result = f"Message of {len(message)} characters: {message[:200]!r}"
    except BaseException as error:
        result = f"{type(error).__name__}: {str(error)[:200]}"
    seconds, memory = time.process_time() - started, peak_memory() - before
    if seconds > MAX_SECONDS:
        return f"Slow: {seconds:.1f} s, then {result}"
    if memory > 2 * size + MAX_MEMORY:
        return f"Memory: {memory / 1e9:.2f} GB, then {result}"
    return f"Ran {events[0]}" if events else result


def work(connection: Any, originals: dict[str, Files], folder: pathlib.Path) -> None:
    """Takes (name of the original or None, files) and sends the outcome, until it takes None."""
    import resource

    torch.set_num_threads(1)
    good = {name: read_checkpoint(write(files, folder / name)) for name, files in originals.items()}
    for name in originals:
        load(folder / name)
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + 8 * 10**9, hard))
    events: list[str] = []
    sys.addaudithook(lambda event, _: events.append(event) if event.startswith(WATCHED) else None)
    while (case := connection.recv()) is not None:
        source, files = case
        path = write(files, folder / "case")
        connection.send(outcome(path, sum(map(len, files.values())), good.get(source), events))


class Worker:
    """A process that reads files, replaced when one ends it or never ends."""

    def __init__(self, originals: dict[str, Files], folder: pathlib.Path) -> None:
        self.originals, self.folder = originals, folder
        self.process: Any = None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, self.originals, self.folder), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.process = None

    def read(self, source: str | None, files: Files) -> str:
        if self.process is None:
            self.start()
        try:
            self.connection.send((source, files))
            if self.connection.poll(MAX_WAIT):
                return self.connection.recv()
            result = f"Hang: no end after {MAX_WAIT:.0f} s"
        except (EOFError, OSError):
            self.process.join()
            result = f"Crash: exit status {self.process.exitcode}"
        self.stop()
        return result


def is_finding(source: str | None, kind: str, result: str) -> bool:
    if source is None:
        return result != "refused"
    sealed = source in ("reference", "s3prl") and kind != "archive"  # not by the mutation's own checksums
    return result[0].isupper() or (result == "changed" and sealed)


def attack(count: int, seed: int, seconds: float = float("inf"), kept: pathlib.Path | None = None) -> dict:
    """Runs all hand-made files and ``count`` mutations: (original, kind) -> outcomes, and ``findings`` under that name.

    Stops after so many seconds. Files with findings are kept in the folder ``kept``.
    """
    table: dict[Any, Any] = collections.defaultdict(collections.Counter)
    findings, end = [], time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        (folder / "work").mkdir()
        originals = good_files(folder)
        worker = Worker(originals, folder / "work")
        made = ((None, name, files) for name, files in attacks(folder).items())
        try:
            for index, (source, kind, files) in enumerate(itertools.chain(made, mutations(originals, count, seed))):
                if time.monotonic() > end:
                    break
                result = worker.read(source, files)
                table[source or "hand-made", kind if source else "all"][result.partition(":")[0]] += 1
                if is_finding(source, kind, result):
                    findings.append(f"{source or 'hand-made'}, {kind}, number {index}: {result}")
                    if kept is not None:
                        kept.mkdir(parents=True, exist_ok=True)
                        write(files, kept / f"{index}")
        finally:
            worker.stop()
    return {**table, "findings": findings}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=20_000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long")
    parser.add_argument("--keep", type=pathlib.Path, default=pathlib.Path("hostile-findings"), help="for bad files")
    args = parser.parse_args()
    started = time.monotonic()
    table = attack(args.mutations, args.seed, args.seconds, args.keep)
    findings = table.pop("findings")
    for (source, kind), outcomes in sorted(table.items()):
        print(f"{source:12} {kind:10}", ", ".join(f"{count} {name}" for name, count in sorted(outcomes.items())))
    total = sum(sum(outcomes.values()) for outcomes in table.values())
    print(f"{total} files in {time.monotonic() - started:.0f} s, {len(findings)} findings", *findings, sep="\n")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
