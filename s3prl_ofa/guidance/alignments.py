"""Segmentations from time alignments: CTM files and Praat TextGrids."""

import collections
import dataclasses
import gzip
import itertools
import math
import os
import pathlib
import zlib
from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from s3prl_ofa.guidance.layout import FRAMES, GuidanceError, num_frames
from s3prl_ofa.guidance.work import Entry
from s3prl_ofa.model import SAMPLE_RATE

SLACK = FRAMES.hop / SAMPLE_RATE  # seconds; gaps and overlaps below a frame come from rounding
MAX_OVERRUN = 0.1  # seconds by which an alignment may exceed the audio; more means another recording
SUFFIX = ".textgrid"


class Interval(NamedTuple):
    start: float  # seconds
    end: float
    label: str


def read_ctm(path: str | os.PathLike, utterances: Collection[str]) -> dict[str, list[Interval]]:
    """Intervals of ``utterances``, from lines ``utterance channel start duration label``, plain or gzipped.

    Anything after the label (confidence, word) is ignored; lines that start with ";;" are comments. Raises
    GuidanceError naming the file and the invalid line.
    """
    intervals: dict[str, list[Interval]] = {}
    open_text = gzip.open if pathlib.Path(path).suffix == ".gz" else open
    number = 0
    try:
        with open_text(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                fields = line.split()
                if fields and not fields[0].startswith(";;"):
                    interval = ctm_interval(fields, f"{path}, line {number}")
                    if fields[0] in utterances:
                        intervals.setdefault(fields[0], []).append(interval)
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise GuidanceError(f"{path}: damaged after line {number} ({error})") from None
    except OSError as error:
        raise GuidanceError(f"{path}: cannot be read ({error.strerror or error}); expected a CTM file") from None
    return intervals


def ctm_interval(fields: list[str], where: str) -> Interval:
    """Raises GuidanceError for an invalid line."""
    try:
        start, duration = float(fields[2]), float(fields[3])
        if 0 <= start < math.inf and 0 <= duration < math.inf:
            return Interval(start, start + duration, fields[4])
    except (ValueError, IndexError):
        pass
    raise GuidanceError(
        f"{where}: expected utterance, channel, start and duration in seconds, label; found {' '.join(fields)[:80]!r}"
    )


def find_textgrids(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """TextGrids below a folder, by name without suffix. Raises GuidanceError when there are none."""
    found: dict[str, list[pathlib.Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() == SUFFIX and not path.name.startswith("."):
            found.setdefault(path.stem, []).append(path)
    if not found:
        raise GuidanceError(f"{folder}: holds no .TextGrid files; expected NAME.TextGrid for NAME.wav")
    return found


def read_textgrid(path: pathlib.Path, tier: str) -> list[Interval]:
    """The intervals of a tier. Raises GuidanceError naming a file that is damaged or lacks the tier."""
    from praatio import textgrid

    try:
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False, reportingMode="silence")
    except OSError as error:
        raise GuidanceError(f"{path}: cannot be read ({error.strerror or error})") from None
    except Exception as error:  # praatio does not validate the text: damage raises many kinds of errors
        raise GuidanceError(
            f"{path}: damaged or not a TextGrid ({type(error).__name__}); export it from Praat again"
        ) from None
    if tier not in grid.tierNames:
        raise GuidanceError(f"{path}: has the tiers {', '.join(grid.tierNames) or 'none'}; expected {tier}")
    found = grid.getTier(tier)
    if not isinstance(found, textgrid.IntervalTier):
        raise GuidanceError(f"{path}: the tier {tier} holds points; expected intervals")
    return [Interval(*entry) for entry in found.entries]


@dataclasses.dataclass(frozen=True)
class CtmIntervals:
    """The intervals of a manifest's entry: those of the CTM utterance with the name of the entry's file."""

    intervals: dict[str, list[Interval]]
    shared: Collection[str]  # names that belong to several entries

    def __call__(self, entry: Entry) -> list[Interval]:
        if entry.stem in self.shared:
            raise GuidanceError(f"no alignment: other files of the manifest are also named {entry.stem}")
        if entry.stem not in self.intervals:
            raise GuidanceError(f"no alignment: the CTM file has no utterance {entry.stem}")
        return self.intervals[entry.stem]


@dataclasses.dataclass(frozen=True)
class TextGridIntervals:
    """The intervals of a manifest's entry, from the TextGrid with its name: at the same relative path, or elsewhere."""

    folder: pathlib.Path
    paths: dict[str, list[pathlib.Path]]
    tier: str
    shared: Collection[str]

    def __call__(self, entry: Entry) -> list[Interval]:
        paths = self.paths.get(entry.stem, [])
        folder = self.folder / pathlib.PurePosixPath(entry.relative).parent
        paths = [path for path in paths if path.parent == folder] or paths
        if not paths:
            raise GuidanceError(f"no alignment: no TextGrid is named {entry.stem}")
        if len(paths) > 1 or (entry.stem in self.shared and paths[0].parent != folder):
            raise GuidanceError(f"no alignment at its relative path, and several files are named {entry.stem}")
        return read_textgrid(paths[0], self.tier)


@dataclasses.dataclass(frozen=True)
class FromAlignments:
    """Boundaries of a manifest's entry, from its intervals."""

    intervals: CtmIntervals | TextGridIntervals
    silences: Collection[str]
    merge: bool
    longest: int | None = None  # frames per segment

    def __call__(self, entry: Entry) -> Tensor:
        boundaries = boundaries_of(self.intervals(entry), entry.samples, self.silences, self.merge)
        return cut_long(boundaries, self.longest)


def shared_names(entries: Iterable[Entry]) -> frozenset[str]:
    """Names, without folder and suffix, that belong to several entries."""
    counts = collections.Counter(entry.stem for entry in entries)
    return frozenset(name for name, count in counts.items() if count > 1)


def boundaries_of(intervals: Iterable[Interval], samples: int, silences: Collection[str], merge: bool) -> Tensor:
    """Boundaries (segments,) int64 of an utterance of ``samples`` samples; the last boundary is its last frame.

    Intervals with a label of ``silences`` and gaps between intervals are silence; adjacent silences are one segment.
    With ``merge`` silence becomes a part of the segment before it (at the start: after it). Segments that contain no
    frame's center vanish. Raises GuidanceError for an alignment that overlaps itself or exceeds the audio.
    """
    ends: list[float] = []
    was_silent = only_silence = True
    for end, silent in cover(intervals, samples / SAMPLE_RATE, silences):
        joins = (silent and (merge or was_silent)) or (merge and only_silence)
        if joins and ends:
            ends[-1] = end
        else:
            ends.append(end)
        was_silent, only_silence = silent, only_silence and silent
    return frames_of(ends, num_frames(samples))


def cover(intervals: Iterable[Interval], seconds: float, silences: Collection[str]) -> Iterable[tuple[float, bool]]:
    """(end in seconds, is silence) of segments that cover all of the audio. Raises GuidanceError."""
    position = 0.0
    for start, end, label in sorted(intervals):
        if start < position - SLACK:
            raise GuidanceError(f"the interval {label} at {start:.2f} s overlaps one that ends at {position:.2f} s")
        if end > seconds + MAX_OVERRUN:
            raise GuidanceError(f"the interval {label} ends at {end:.2f} s, the audio at {seconds:.2f} s")
        if start > position + SLACK:
            yield start, True
        position = max(position, end)
        yield position, not label.strip() or label.strip() in silences
    if seconds > position + SLACK:
        yield seconds, True


def frames_of(ends: list[float], frames: int) -> Tensor:
    """Boundaries (segments,) of segments that end at ``ends``, in seconds, by the centers of the frames."""
    samples = (torch.tensor(ends, dtype=torch.float64) * SAMPLE_RATE).round()
    # how many frames have their center before each end
    before = torch.ceil((samples - FRAMES.receptive_field / 2) / FRAMES.hop).long()
    before[-1] = frames
    return torch.unique(before.clamp(0, frames)[before > 0])


def cut_long(boundaries: Tensor, longest: int | None) -> Tensor:
    """Boundaries (segments,), with segments of more than ``longest`` frames (mostly silences) cut into equal parts."""
    if longest is None:
        return boundaries
    cut = []
    for begin, end in itertools.pairwise([0, *boundaries.tolist()]):
        parts = -(-(end - begin) // longest)
        cut += [begin + part * (end - begin) // parts for part in range(1, parts + 1)]
    return torch.tensor(cut)
