"""The features by which segmentation compares frames: MFCCs, or hidden states of a checkpoint or an S3PRL upstream.

A source maps a wave (samples,) float32 to features (frames, dim) float32, on the frames of the guidance. It can be sent
to another process, which loads the model again.
"""

import functools
from typing import Any

import numpy as np
import torch

from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.guidance.layout import FRAMES, GuidanceError, num_frames
from s3prl_ofa.guidance.work import Entry
from s3prl_ofa.io.audio import read_speech
from s3prl_ofa.model import SAMPLE_RATE

CEPSTRA = 13


class Mfcc:
    """Kaldi's MFCCs by torchaudio, normalized to mean 0 and variance 1 per utterance.

    Not librosa's: Kaldi's windows start at the first sample and only whole ones count, so that windows of 25 ms every
    20 ms are exactly the frames of wav2vec 2.0.
    """

    def describe(self) -> dict[str, Any]:
        return {"features": "mfcc", "layer": None}

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        from s3prl_ofa.superb.compat.shims import torchaudio_import

        torchaudio_import()
        from torchaudio.compliance import kaldi

        scaled = torch.from_numpy(wave)[None] * 2.0**15  # Kaldi expects 16-bit integers
        milliseconds = {"frame_length": 1000 * FRAMES.receptive_field / SAMPLE_RATE, "frame_shift": 20.0}
        cepstra = kaldi.mfcc(scaled, sample_frequency=SAMPLE_RATE, num_ceps=CEPSTRA, dither=0.0, **milliseconds)
        spread = cepstra.std(0, correction=0).clamp_min(1e-5)  # digital silence has none
        return ((cepstra - cepstra.mean(0)) / spread).numpy()


class Hidden:
    """A hidden state of a model; subclasses load and run it."""

    def __init__(self, layer: int, device: str) -> None:
        self.layer, self.device = layer, device

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "model"}

    def check_layer(self, layers: int, name: str) -> None:
        if not 0 <= self.layer < layers:
            raise UsageError(f"--layer must be 0 to {layers - 1} for {name}, found {self.layer}")


class CheckpointHidden(Hidden):
    """A hidden state of a checkpoint that ``s3prl_ofa.load`` reads, without compression: ``--ckpt``."""

    def __init__(self, ckpt: str, layer: int, device: str) -> None:
        super().__init__(layer, device)
        self.ckpt = ckpt
        self.check_layer(self.model.config.layers + 1, ckpt)

    @functools.cached_property
    def model(self) -> Any:
        from s3prl_ofa.checkpoint import load

        model = load(self.ckpt, device=self.device)
        grid = ("hop", "receptive_field")
        if any(getattr(model.config, name) != getattr(FRAMES, name) for name in grid):
            raise UsageError(f"{self.ckpt} has a frame every {model.config.hop} samples; expected {FRAMES.hop}")
        return model

    def describe(self) -> dict[str, Any]:
        return {"features": f"checkpoint {self.model.fingerprint()}", "layer": self.layer}

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            states = self.model.extract([wave], layers=self.layer).hidden_states
        return states[self.layer][0].cpu().numpy()


class UpstreamHidden(Hidden):
    """A hidden state of an upstream in S3PRL's hub: ``--upstream``."""

    def __init__(self, name: str, ckpt: str | None, layer: int, device: str) -> None:
        super().__init__(layer, device)
        self.name, self.ckpt = name, ckpt
        model = self.model
        self.check_layer(model.num_layers, name)
        if model.downsample_rates[layer] > FRAMES.hop:
            found = 1000 * model.downsample_rates[layer] / SAMPLE_RATE
            raise UsageError(f"--upstream {name} has a frame every {found:g} ms; expected 20 ms or less")

    @functools.cached_property
    def model(self) -> Any:
        from s3prl_ofa.superb import registration
        from s3prl_ofa.superb.compat import plain_names

        registration.register()  # S3PRL then runs on today's stack, and knows our upstreams
        from s3prl import hub
        from s3prl.nn import S3PRLUpstream

        if self.name not in hub.options():
            raise UsageError(f"--upstream {self.name}: S3PRL has none of this name; expected hubert, wavlm, ...")
        try:
            with plain_names.reading_safely():
                return S3PRLUpstream(self.name, self.ckpt).to(self.device).eval()
        except Exception as error:  # upstreams load in many ways, often from the network
            kind = "" if isinstance(error, CheckpointError | UsageError) else f"{type(error).__name__}: "
            raise UsageError(f"--upstream {self.name} cannot be loaded ({kind}{error})") from error

    def describe(self) -> dict[str, Any]:
        return {"features": " ".join(filter(None, ["upstream", self.name, self.ckpt])), "layer": self.layer}

    def __call__(self, wave: np.ndarray) -> np.ndarray:
        model = self.model
        batch = torch.from_numpy(wave)[None].to(self.device)
        with torch.inference_mode():
            states, _ = model(batch, torch.LongTensor([len(wave)]))
        state = states[self.layer][0].float().cpu().numpy()
        return state[beginning_with(num_frames(len(wave)), len(state), model.downsample_rates[self.layer])]


def beginning_with(frames: int, states: int, hop: int) -> np.ndarray:
    """Indices (frames,) of the hidden states that begin with each frame.

    There are ``states`` hidden states, ``hop`` samples apart. Exact for convolutions and for Kaldi's windows; centered
    windows come out 12.5 ms early.
    """
    return np.minimum(FRAMES.hop * np.arange(frames) // hop, states - 1)


def features_of(source: Any, entry: Entry) -> np.ndarray:
    """Features (frames, dim) of an utterance. Raises AudioError, GuidanceError, and what the model raises."""
    wave = read_speech(entry.path)
    if len(wave) != entry.samples:
        raise GuidanceError(
            f"has {len(wave)} samples at {SAMPLE_RATE} Hz, the manifest says {entry.samples}; make the manifest again"
        )
    features = source(wave)
    if len(features) != num_frames(entry.samples) or not np.isfinite(features).all():
        raise GuidanceError(
            f"features of shape {features.shape}; expected {num_frames(entry.samples)} frames of finite values"
        )
    return features
