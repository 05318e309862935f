"""For pretraining: the manifests of the audio on which fairseq trains and validates."""

import pathlib
import random

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import SAMPLE_RATE, find_audio
from s3prl_ofa.io.files import atomic_write, printable
from s3prl_ofa.output import tell
from s3prl_ofa.superb.prepare.output import Output


def write_manifests(output: Output, audio: pathlib.Path, valid_fraction: float, seed: int) -> None:
    """Writes train.tsv and valid.tsv of all audio below a folder. Raises UsageError if only one of the two exists."""
    if not audio.is_dir():
        raise UsageError(f"there is no folder {audio}; expected one with audio files")
    if not 0 <= valid_fraction < 1:
        raise UsageError(f"--valid-fraction must be at least 0 and below 1, found {valid_fraction:g}")
    paths = [output.folder / f"{part}.tsv" for part in ("train", "valid")]
    existing = [path for path in paths if path.exists()]
    if existing == paths and not output.force:
        output.keep(*paths)
        return
    if existing and not output.force:
        # the two are one division of the files: a new half need not fit the old one
        missing = next(path for path in paths if path not in existing)
        raise UsageError(f"{existing[0]} already exists, {missing.name} does not; --force replaces both")
    root = audio.resolve()
    if reason := unlistable(str(root)):
        raise UsageError(f"{printable(root)}: {reason}")
    found = find_audio(root)
    strange = {path: reason for path in found if (reason := unlistable(path.relative_to(root).as_posix()))}
    output.left_out |= strange
    samples = output.usable((path for path in found if path not in strange), root.name)
    paths[-1].unlink(missing_ok=True)  # what a kill leaves of two divisions must not look complete
    for path, files in zip(paths, divide(list(samples), valid_fraction, seed), strict=True):
        write_manifest(path, root, {file: samples[file] for file in files})
        hours = sum(samples[file] for file in files) / SAMPLE_RATE / 3600
        tell(f"{path}: {len(files)} files, {hours:.2f} hours")


def divide(
    files: list[pathlib.Path], valid_fraction: float, seed: int
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The files of train and valid, always the same for a seed; with a fraction above 0 valid has at least one."""
    count = round(len(files) * valid_fraction)
    if valid_fraction > 0:
        count = min(max(count, 1), len(files) - 1)
    valid = set(random.Random(seed).sample(sorted(files), count))
    return [path for path in files if path not in valid], [path for path in files if path in valid]


def unlistable(name: str) -> str | None:
    """Why a path cannot be in a manifest, whose lines fairseq strips and splits at tabs; None if it can."""
    if any(character in name for character in "\t\n\r"):
        return "its path holds a tab or a line break; rename it"
    if name != name.strip():
        return "its path begins or ends with white space; rename it"
    return None


def write_manifest(path: pathlib.Path, root: pathlib.Path, samples: dict[pathlib.Path, int]) -> None:
    """The root in the first line, then a line for every file: its path below the root, a tab and its samples."""
    lines = (f"{audio.relative_to(root).as_posix()}\t{count}\n" for audio, count in samples.items())
    atomic_write(path, "".join([f"{root}\n", *lines]))
