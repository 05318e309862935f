"""Finding audio files, naming their outputs, and batching them."""

import dataclasses
import os
import pathlib
from collections.abc import Iterable, Sequence

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import find_audio


@dataclasses.dataclass(frozen=True)
class Utterance:
    """One audio file. ``name`` is its path below the common folder, suffix included, so that no two are the same."""

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


def make_batches(
    utterances: Iterable[tuple[Utterance, float]], batch_seconds: float
) -> list[list[tuple[Utterance, float]]]:
    """(utterance, seconds) pairs in batches of at most ``batch_seconds``, sorted by length.

    Longest first, so that batches that do not fit into memory fail at the start. An utterance longer than
    ``batch_seconds`` becomes a batch of one.
    """
    batches: list[list[tuple[Utterance, float]]] = []
    room = 0.0
    for utterance, seconds in sorted(utterances, key=lambda pair: (-pair[1], pair[0].name)):
        if not batches or seconds > room:
            batches.append([])
            room = batch_seconds
        batches[-1].append((utterance, seconds))
        room -= seconds
    return batches
