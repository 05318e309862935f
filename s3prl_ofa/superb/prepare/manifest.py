"""fairseq's manifests: which audio to pretrain on."""

import pathlib
import random

from s3prl_ofa.io.files import atomic_path


def divide(files: list[pathlib.Path], valid_fraction: float, seed: int) -> dict[str, list[pathlib.Path]]:
    """Files for train and valid, drawn the same way for the same files and seed; with a fraction above 0 at least one
    for valid."""
    count = round(len(files) * valid_fraction)
    if valid_fraction > 0:
        count = min(max(count, 1), len(files) - 1)
    valid = set(random.Random(seed).sample(sorted(files), count))
    return {"train": [path for path in files if path not in valid], "valid": [path for path in files if path in valid]}


def unlistable(name: str) -> str | None:
    """Why a path cannot be in a manifest, whose lines fairseq strips and splits at tabs; None if it can."""
    if any(character in name for character in "\t\n\r"):
        return "its path holds a tab or a line break, rename it"
    if name != name.strip():
        return "its path begins or ends with white space, rename it"
    return None


def write_manifest(path: pathlib.Path, root: pathlib.Path, samples: dict[pathlib.Path, int]) -> None:
    """The root in the first line, then a line of path below it, tab and samples for every file."""
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(f"{root}\n")
        file.writelines(f"{audio.relative_to(root).as_posix()}\t{count}\n" for audio, count in samples.items())
