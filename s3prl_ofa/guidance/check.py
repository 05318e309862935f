"""Checking guidance files, ours or the reference's, as training will read them."""

import dataclasses
import pathlib
import sys

import torch
from torch import Tensor

from s3prl_ofa.guidance import layout
from s3prl_ofa.guidance.layout import ALPHA, BOUNDARIES, GuidanceError, guidance_path
from s3prl_ofa.guidance.scores import TOLERANCES, BoundaryScores, boundary_scores, uniform_boundaries
from s3prl_ofa.guidance.work import SHOWN, Entry, each
from s3prl_ofa.io.files import printable
from s3prl_ofa.model import SAMPLE_RATE

LENGTH_TOLERANCE = 2  # frames; some front ends pad a little, which training cuts or pads as well
ALPHA_TOLERANCE = 0.01  # for alpha in half precision
Scores = dict[float, tuple[BoundaryScores, BoundaryScores]]  # by tolerance: of the guidance, of a uniform segmentation


@dataclasses.dataclass
class Checked:
    """The result for one utterance; ``reasons`` explains every broken file."""

    missing: bool = False
    reasons: list[str] = dataclasses.field(default_factory=list)
    segments: int = 0
    scores: Scores | None = None


@dataclasses.dataclass(frozen=True)
class Check:
    """Checks one utterance, and scores its boundaries against other guidance if there is any."""

    root: pathlib.Path
    against: pathlib.Path | None = None

    def __call__(self, entry: Entry) -> Checked:
        if not all(guidance_path(self.root / name, entry.relative).exists() for name in (ALPHA, BOUNDARIES)):
            return Checked(missing=True)
        found, reasons = {}, []
        for name, read in ((ALPHA, layout.read_alpha), (BOUNDARIES, layout.read_boundaries)):
            try:
                found[name] = read(self.root / name, entry.relative)
            except GuidanceError as error:
                reasons.append(str(error))
        if not reasons:
            reasons = [
                f"{guidance_path(self.root / ALPHA, entry.relative)}: {text}" for text in mismatch(**found, entry=entry)
            ]
        if reasons:
            return Checked(reasons=reasons)
        return Checked(segments=len(found[BOUNDARIES]), scores=self.score(found[BOUNDARIES], entry))

    def score(self, boundaries: Tensor, entry: Entry) -> Scores | None:
        """None if there is nothing to compare with."""
        if self.against is None:
            return None
        try:
            other = layout.read_boundaries(self.against / BOUNDARIES, entry.relative)
        except GuidanceError:
            return None
        found, reference = (layout.boundary_seconds(ends[:-1]).numpy() for ends in (boundaries, other))
        uniform = uniform_boundaries(entry.samples / SAMPLE_RATE, len(found))
        return {
            tolerance: (
                boundary_scores([found], [reference], tolerance),
                boundary_scores([uniform], [reference], tolerance),
            )
            for tolerance in TOLERANCES
        }


def mismatch(alpha: Tensor, boundaries: Tensor, entry: Entry) -> list[str]:
    """Why two readable files do not describe one segmentation of this utterance; empty if they do."""
    frames = layout.num_frames(entry.samples)
    if abs(len(alpha) - frames) > LENGTH_TOLERANCE:
        return [f"alpha has {len(alpha)} frames, but {entry.samples} samples have {frames}"]
    if int(boundaries[-1]) > len(alpha):
        return [f"alpha has {len(alpha)} frames, but the last boundary is {int(boundaries[-1])}"]
    if not torch.allclose(alpha, layout.alpha_of(boundaries, len(alpha)), rtol=0, atol=ALPHA_TOLERANCE):
        return ["alpha is not 1 / length over the segments of its boundaries"]
    return []


def check(root: pathlib.Path, entries: list[Entry], against: pathlib.Path | None, jobs: int) -> int:
    """Prints what is good, missing and broken. Returns 1 if anything is missing or broken, else 0."""
    results = list(zip(entries, each(Check(root, against), entries, jobs, "check"), strict=True))
    missing = [entry for entry, found in results if found.missing]
    broken = [found for _, found in results if found.reasons]
    good = [(entry, found) for entry, found in results if found.segments]
    print(f"{root}: {len(entries)} utterances, {len(good)} good, {len(missing)} missing, {len(broken)} broken")
    if good:
        segments = sum(found.segments for _, found in good)
        milliseconds = 1000 * sum(entry.samples for entry, _ in good) / SAMPLE_RATE
        print(f"{segments} segments, mean period {milliseconds / segments:.1f} ms")
    for tolerance in TOLERANCES if against else ():
        scores = [found.scores[tolerance] for _, found in good if found.scores]
        nothing = BoundaryScores(0, 0, 0)
        print(f"boundaries of {len(scores)} utterances against {against}, {1000 * tolerance:g} ms tolerance:")
        print(f"  these:   {sum((found for found, _ in scores), nothing)}")
        print(f"  uniform: {sum((uniform for _, uniform in scores), nothing)}")
    for found in broken:
        print("\n".join(f"broken: {reason}" for reason in found.reasons), file=sys.stderr)
    for entry in missing[:SHOWN]:
        print(f"missing: {printable(entry.relative)}", file=sys.stderr)
    if len(missing) > SHOWN:
        print(f"{len(missing) - SHOWN} more are missing", file=sys.stderr)
    return 1 if missing or broken else 0
