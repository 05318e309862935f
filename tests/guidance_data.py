"""Small corpora and alignments for the tests of guidance."""

import pathlib

import numpy as np
import soundfile

from s3prl_ofa import cli
from s3prl_ofa.model import SAMPLE_RATE


def guidance(*arguments) -> int:
    return cli.main(["guidance", *map(str, arguments)])


def write_manifest(path: pathlib.Path, root: pathlib.Path, samples: dict[str, int]) -> pathlib.Path:
    path.write_text(f"{root}\n" + "".join(f"{name}\t{count}\n" for name, count in samples.items()))
    return path


def write_ctm(path: pathlib.Path, alignments: dict[str, list[tuple[float, float, str]]]) -> pathlib.Path:
    """Alignments as (start, end, label) in seconds."""
    lines = [
        f"{name} 1 {start:.3f} {end - start:.3f} {label} word\n"
        for name, intervals in alignments.items()
        for start, end, label in intervals
    ]
    path.write_text("".join(lines))
    return path


def write_textgrid(
    path: pathlib.Path, intervals: list[tuple[float, float, str]], tier: str = "phones", encoding: str = "utf-8"
) -> pathlib.Path:
    """One tier of intervals in Praat's long form."""
    end = intervals[-1][1]
    text = 'File type = "ooTextFile"\nObject class = "TextGrid"\n\n'
    text += f"xmin = 0\nxmax = {end}\ntiers? <exists>\nsize = 1\nitem []:\n    item [1]:\n"
    text += f'        class = "IntervalTier"\n        name = "{tier}"\n        xmin = 0\n        xmax = {end}\n'
    text += f"        intervals: size = {len(intervals)}\n"
    for number, (start, stop, label) in enumerate(intervals, 1):
        text += f"        intervals [{number}]:\n            xmin = {start}\n            xmax = {stop}\n"
        text += f'            text = "{label}"\n'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding)
    return path


def tones(seconds: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A wave of tones of 60 to 200 ms each at one of five pitches, and the seconds at which they change."""
    random = np.random.default_rng(seed)
    ends, pitches = [0.0], []
    while ends[-1] < seconds:
        ends.append(ends[-1] + random.uniform(0.06, 0.2))
        pitches.append(random.choice([p for p in (200, 500, 900, 1700, 3100) if not pitches or p != pitches[-1]]))
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = np.array(pitches)[np.searchsorted(ends[1:-1], time, side="right")]
    wave = 0.1 * np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE) + 0.001 * random.standard_normal(len(time))
    return wave.astype(np.float32), np.array(ends[1:-1])


def make_speech(root: pathlib.Path, count: int, seconds: float = 1.0) -> dict[str, int]:
    """Files of tones below ``root``, some in folders with dots; returns their lengths for a manifest."""
    samples = {}
    for number in range(count):
        name = f"v1.{number % 3}/utt.{number}.wav"
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        wave, _ = tones(seconds + 0.01 * number, number)
        soundfile.write(path, wave, SAMPLE_RATE)
        samples[name] = len(wave)
    return samples


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """The content of every guidance file, by name."""
    paths = [path for name in ("alpha", "boundaries") for path in (folder / name).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
