"""Waves of a fairseq manifest with their guidance (alpha and boundaries of a segmentation), cropped together."""

import contextlib
import logging
import os
import pathlib
import re
import time
from typing import Any

import numpy as np
import torch
from fairseq.data import FileAudioDataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_ofa.errors import listed
from s3prl_ofa.guidance.layout import FRAMES, GuidanceError, guidance_path, num_frames, read_alpha, read_boundaries
from s3prl_ofa.io.audio import SAMPLE_RATE, AudioError, load_speech
from s3prl_ofa.io.files import printable
from s3prl_ofa.io.scan import scan

logger = logging.getLogger(__name__)

HOP = FRAMES.hop  # samples
LENGTH_TOLERANCE = 5  # frames; guidance made from other features may be a little longer or shorter
SHOWN = 3  # file names per message
PAUSES = (0.1, 1.0)  # seconds between attempts to read a file
IN_ZIP = re.compile(r"\.zip:\d+:\d+$")  # fairseq's syntax for a part of an uncompressed archive


def relative_path(dataset: FileAudioDataset, index: int) -> str:
    """An utterance's path in the manifest of a dataset."""
    name = dataset.fnames[index]
    return dataset.text_compressor.decompress(name if isinstance(dataset.fnames, list) else name.as_py())


class GuidedAudioDataset(FileAudioDataset):
    """fairseq's FileAudioDataset with guidance for each wave.

    alpha_root, boundaries_root: folders of guidance (see guidance/layout.py), either may be None. bad_guidance: "stop"
    or "skip", for files that are missing, damaged or of a different length. bad_audio: the same for audio that
    ``check_speech`` rejects or that cannot be read to its end; "skip" leaves it out of its batch. Which utterances are
    left out depends only on the files, and crops on ``crop_seed``, the epoch and the utterance, so that a resumed run
    trains on the same data. Raises GuidanceError for missing files, AudioError for audio with an unusable header.
    """

    def __init__(
        self,
        manifest_path: str,
        *args: Any,
        alpha_root: str | None = None,
        boundaries_root: str | None = None,
        bad_guidance: str = "stop",
        bad_audio: str = "stop",
        crop_seed: int = 0,
        min_sample_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        # utterances without a frame cannot be trained on
        shortest = max(min_sample_size or 0, FRAMES.receptive_field)
        super().__init__(manifest_path, *args, min_sample_size=shortest, **kwargs)
        self.roots = {"alpha": alpha_root, "boundaries": boundaries_root}
        self.bad_guidance, self.bad_audio = bad_guidance, bad_audio
        self.crop_seed, self.epoch = crop_seed, 0
        self.warned: set[str] = set()  # utterances whose guidance has been warned about
        self.bad: set[int] = set()  # utterances whose audio cannot be used
        self.check_headers(pathlib.Path(manifest_path).name)
        self.check_guidance()

    @property
    def has_guidance(self) -> bool:
        return any(self.roots.values())

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.epoch = epoch

    def relative(self, index: int) -> str:
        return relative_path(self, index)

    def check_headers(self, manifest: str) -> None:
        """Reads all headers before training starts. Raises AudioError, or warns, naming the first bad files."""
        paths = [pathlib.Path(self.root_dir, self.relative(index)) for index in range(len(self.fnames))]
        bad = scan([path for path in paths if not IN_ZIP.search(path.name)], None, f"headers of {manifest}").bad
        if not bad:
            return
        self.bad = {index for index, path in enumerate(paths) if path in bad}
        shown = listed((f"{printable(path)}: {why}" for path, why in bad.items()), SHOWN, "; ")
        text = f"{len(bad)} of {len(paths)} files in {manifest} cannot be used: {shown}"
        if self.bad_audio == "stop":
            raise AudioError(f"{text}; task.bad_audio=skip leaves them out")
        if len(self.bad) == len(paths):
            raise AudioError(text)
        logger.warning("%s; they are left out", text)

    def check_guidance(self) -> None:
        """Looks for all guidance files before training starts. Raises GuidanceError, or warns, naming the first."""
        for kind, root in self.roots.items():
            if not root:
                continue
            if not os.path.isdir(root):
                raise GuidanceError(f"{root}: no such folder; expected the guidance's {kind} files")
            names = map(self.relative, range(len(self.fnames)))
            missing = [name for name in names if not guidance_path(root, name).is_file()]
            if missing:
                shown = listed((str(guidance_path(root, name)) for name in missing), SHOWN)
                text = f"{len(missing)} of {len(self.fnames)} {kind} files are missing: {shown}"
                if self.bad_guidance == "stop":
                    raise GuidanceError(f"{text}; task.bad_guidance=skip trains them without guidance losses")
                if not self.warned.issuperset(missing):  # usually the same ones lack alpha and boundaries
                    logger.warning("%s; they are trained without guidance losses", text)
                self.warned.update(missing)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """id, source (samples,), pseudo_alpha (frames,) and boundaries (segments,).

        The last two are None if their root is, or if the utterance is trained without guidance. If its audio cannot be
        used, source is None and the last two are missing. Raises AudioError, GuidanceError.
        """
        source = self.source(index)
        if source is None:
            return {"id": index, "source": None}
        frames = num_frames(len(source))
        relative = self.relative(index)
        try:
            alpha = self.read(read_alpha, "alpha", relative)
            if alpha is not None and abs(len(alpha) - frames) > LENGTH_TOLERANCE:
                raise GuidanceError(
                    f"{guidance_path(self.roots['alpha'], relative)}: {len(alpha)} frames of guidance for an utterance "
                    f"of {frames} frames; was it made for other audio?"
                )
            boundaries = self.read(read_boundaries, "boundaries", relative)
        except GuidanceError as error:
            if self.bad_guidance == "stop":
                raise
            if relative not in self.warned:
                self.warned.add(relative)
                logger.warning("%s; it is trained without guidance losses", error)
            alpha = boundaries = None
        if boundaries is not None:
            boundaries = torch.unique_consecutive(boundaries.clamp(max=frames))
        return {"id": index, "source": source, "pseudo_alpha": alpha, "boundaries": boundaries}

    def source(self, index: int) -> Tensor | None:
        """The wave (samples,) of an utterance, or None if it is left out. Raises AudioError."""
        path = os.path.join(self.root_dir, self.relative(index))
        if index in self.bad:
            return None
        if IN_ZIP.search(path):
            return super().__getitem__(index)["source"]
        try:
            return self.postprocess(torch.from_numpy(load_with_retries(path)), SAMPLE_RATE)
        except AudioError as error:
            if self.bad_audio == "stop":
                raise AudioError(f"{error}; task.bad_audio=skip leaves it out") from None
            self.bad.add(index)
            logger.warning("%s; it is left out", error)
            return None

    def read(self, reader, kind: str, relative: str) -> Tensor | None:
        return reader(self.roots[kind], relative) if self.roots[kind] else None

    def size(self, index: int) -> int:
        """Samples of an utterance in a batch, at most those of a crop."""
        return min(self.sizes[index], self.max_sample_size)

    def collater(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch: ids, and the model's input: ``source`` (batch, samples), and ``padding_mask`` if there is padding.

        With guidance the input also has ``guidance``: guided (batch,), pseudo_alpha (batch, frames), boundaries
        (batch, segments), first_part (batch,). A batch without usable utterances gets the first usable one of the
        dataset, because fairseq accepts no empty batch at the start of an epoch.
        """
        if not samples:
            return {}
        samples = [sample for sample in samples if sample["source"] is not None] or [self.first_usable()]
        sizes = [len(sample["source"]) for sample in samples]
        target = min(max(sizes) if self.pad else min(sizes), self.max_sample_size)
        cropped = [self.crop(sample, target) for sample in samples]
        source = pad_sequence([sample["source"] for sample in cropped], batch_first=True)
        net_input: dict[str, Any] = {"source": source}
        if any(size < target for size in sizes):
            lengths = torch.tensor([min(size, target) for size in sizes])
            net_input["padding_mask"] = torch.arange(target) >= lengths[:, None]
        if self.has_guidance:
            net_input["guidance"] = collate_guidance(cropped, self.roots)
        return {"id": torch.tensor([sample["id"] for sample in samples]), "net_input": net_input}

    def first_usable(self) -> dict[str, Any]:
        for index in range(len(self)):
            if (item := self[index])["source"] is not None:
                return item
        raise AudioError(f"none of the {len(self)} files below {self.root_dir} can be used; expected 16 kHz mono audio")

    def crop(self, sample: dict[str, Any], target: int) -> dict[str, Any]:
        """Crops wave and guidance to at most ``target`` samples, starting at a random multiple of the hop."""
        extra = max(0, len(sample["source"]) - target)
        start = 0
        if extra:
            generator = np.random.default_rng([self.crop_seed, self.epoch, sample["id"]])
            start = int(generator.integers(extra // HOP + 1))
        source = sample["source"][start * HOP : start * HOP + target]
        frames = num_frames(len(source))
        alpha, boundaries, first_part = sample["pseudo_alpha"], sample["boundaries"], 1.0
        if alpha is not None:
            alpha = alpha[start : start + frames]
        if boundaries is not None:
            boundaries, first_part = crop_boundaries(boundaries, start, frames)
        return {"source": source, "pseudo_alpha": alpha, "boundaries": boundaries, "first_part": first_part}


def load_with_retries(path: str) -> np.ndarray:
    """``load_speech`` with retries, as in fairseq, because network file systems fail now and then."""
    for pause in PAUSES:
        with contextlib.suppress(AudioError):
            return load_speech(path)
        time.sleep(pause)
    return load_speech(path)


def crop_boundaries(boundaries: Tensor, start: int, frames: int) -> tuple[Tensor, float]:
    """Boundaries within frames [start, start + frames), relative to start, and the fraction left of the first segment.

    boundaries: (segments,), the 1-based last frames. A segment that ends outside has no boundary.
    """
    inside = boundaries[(boundaries > start) & (boundaries <= start + frames)]
    if not len(inside):
        return inside, 1.0
    before = boundaries[boundaries <= start]
    begin = int(before[-1]) if len(before) else 0
    return inside - start, (int(inside[0]) - start) / (int(inside[0]) - begin)


def collate_guidance(samples: list[dict[str, Any]], roots: dict[str, str | None]) -> dict[str, Tensor]:
    """The guidance of a batch, padded with 0 and -1; an utterance without guidance is all padding."""
    keys = [key for kind, key in (("alpha", "pseudo_alpha"), ("boundaries", "boundaries")) if roots[kind]]
    guidance = {
        "guided": torch.tensor([all(sample[key] is not None for key in keys) for sample in samples]),
        "first_part": torch.tensor([sample["first_part"] for sample in samples]),
    }
    empty = {"pseudo_alpha": torch.zeros(0), "boundaries": torch.zeros(0, dtype=torch.long)}
    padding = {"pseudo_alpha": 0.0, "boundaries": -1}
    for key in keys:
        rows = [empty[key] if sample[key] is None else sample[key] for sample in samples]
        guidance[key] = pad_sequence(rows, batch_first=True, padding_value=padding[key])
    return guidance
