"""Keeps decoded audio beside the hidden states: with a warm cache, decoding FLAC is a fifth of a training step."""

import hashlib
import os
import pathlib

import numpy as np
import torch

from s3prl_ofa.io.audio import load_speech
from s3prl_ofa.superb.feature_cache.section import Section

KEY = {"audio": "float32", "format": 1}
WAVE = "wave"


class AudioCache(Section):
    """The samples of audio files. folder, limit_gb: see Section."""

    def __init__(self, folder: str | os.PathLike, limit_gb: float) -> None:
        super().__init__(folder, limit_gb, KEY, {WAVE})

    def load(self, path: str | os.PathLike) -> np.ndarray:
        """What ``load_speech`` returns and raises for this file."""
        try:
            cached = self.path(path)
        except OSError:  # there is no such file, which load_speech says
            return load_speech(path)
        entry = self.read(cached)
        if entry is None:
            entry = {WAVE: torch.from_numpy(load_speech(path))}
            self.store(cached, entry)
        return entry[WAVE].numpy()

    def path(self, audio: str | os.PathLike) -> pathlib.Path:
        """Of a file's entry. Its name, size and times stand for its content: a copy in its place changes st_ctime."""
        stat = os.stat(audio)
        name = f"{os.path.realpath(audio)} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"
        return self.file(hashlib.sha256(os.fsencode(name)).hexdigest())
