"""Finding audio files, naming their outputs, and dividing them into shards and batches."""

import dataclasses
import heapq
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import AudioError, duration, find_audio
from s3prl_ofa.io.scan import each_in_threads


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One audio file. ``name`` is its path below the common folder, including the suffix, so that names are unique."""

    path: pathlib.Path
    name: str
    size: int  # bytes; -1 if unknown, as for a broken link
    mtime_ns: int


def find_utterances(arguments: Sequence[str | os.PathLike]) -> list[Utterance]:
    """The given files and all audio files below the given folders, each once.

    Names are relative to the deepest folder that contains all given folders and files. Raises UsageError when an
    argument does not exist or nothing is found.
    """
    files: dict[pathlib.Path, None] = {}
    roots = []
    for argument in arguments:
        path = pathlib.Path(os.path.abspath(argument))
        if path.is_dir():
            roots.append(path)
            files.update(dict.fromkeys(find_audio(path)))
        elif path.exists():
            roots.append(path.parent)
            files[path] = None
        else:
            raise UsageError(f"{argument}: no such file or folder; expected audio files, or folders of them")
    if not files:
        raise UsageError(f"no audio found below {', '.join(map(str, arguments))}; expected files that soundfile reads")
    root = os.path.commonpath(roots)
    utterances = []
    for path in files:
        try:
            status = path.stat()
            size, mtime_ns = status.st_size, status.st_mtime_ns
        except OSError:
            size, mtime_ns = -1, -1  # reading the file will give the reason
        utterances.append(Utterance(path, path.relative_to(root).as_posix(), size, mtime_ns))
    return utterances


def with_seconds(
    utterances: list[Utterance], todo: list[Utterance], suffix: str, fail: Callable[[Utterance, str], None]
) -> Iterator[tuple[Utterance, float]]:
    """Yields those of ``todo`` that can be opened and whose output can be written, with their seconds of audio.

    suffix: of the output files. fail: called for the rest with the reason.
    """
    folders = {parent for utterance in utterances for parent in pathlib.PurePosixPath(utterance.name).parents}
    writable = []
    for utterance in todo:
        name = f"{utterance.name}{suffix}"
        if pathlib.PurePosixPath(name) in folders:
            fail(utterance, f"its output would be named {name}, like a folder of other audio; rename one")
        else:
            writable.append(utterance)
    found = each_in_threads(seconds_or_reason, [utterance.path for utterance in writable], None, "headers")
    for utterance, (_, seconds) in zip(writable, found, strict=True):
        if isinstance(seconds, str):
            fail(utterance, seconds)
        else:
            yield utterance, seconds


def seconds_or_reason(path: pathlib.Path) -> float | str:
    """Seconds of audio from the header, or the reason why the file cannot be opened."""
    try:
        return duration(path)
    except AudioError as error:
        return str(error)


def make_shards(utterances: Iterable[tuple[Utterance, float]], count: int) -> list[list[tuple[Utterance, float]]]:
    """(utterance, seconds) pairs in at most ``count`` lists of nearly equal seconds, none of them empty."""
    shards: list[tuple[float, int, list[tuple[Utterance, float]]]] = [(0.0, number, []) for number in range(count)]
    for pair in longest_first(utterances):
        seconds, number, shard = shards[0]  # the one with the least audio
        shard.append(pair)
        heapq.heapreplace(shards, (seconds + pair[1], number, shard))
    return [shard for _, _, shard in sorted(shards, key=lambda entry: entry[1]) if shard]


def longest_first(utterances: Iterable[tuple[Utterance, float]]) -> list[tuple[Utterance, float]]:
    return sorted(utterances, key=lambda pair: (-pair[1], pair[0].name))


def make_batches(
    utterances: Iterable[tuple[Utterance, float]], batch_seconds: float
) -> list[list[tuple[Utterance, float]]]:
    """(utterance, seconds) pairs in batches of at most ``batch_seconds``, sorted by length.

    Longest first, so that batches that do not fit into memory fail at the start. An utterance longer than
    ``batch_seconds`` becomes a batch of one.
    """
    batches: list[list[tuple[Utterance, float]]] = []
    room = 0.0
    for utterance, seconds in longest_first(utterances):
        if not batches or seconds > room:
            batches.append([])
            room = batch_seconds
        batches[-1].append((utterance, seconds))
        room -= seconds
    return batches
