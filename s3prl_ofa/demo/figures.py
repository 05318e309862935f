"""The figure of the page and the notebook: phones, spectrogram with frame boundaries, and alpha of one utterance."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from s3prl_ofa.io.audio import SAMPLE_RATE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HOP = 0.02  # seconds, of alpha
WINDOW, STEP = 0.025, 0.005  # seconds, of the spectrogram
DYNAMIC_RANGE = 65.0  # dB
BOUNDARY, ALPHA, WEIGHT, HIGHLIGHT = "#ffffff", "#0072b2", "#d55e00", "#ffd400"
SIZE, DPI = (7.6, 3.7), 150  # inches, pixels per inch
WIDTH = round(SIZE[0] * DPI)  # pixels
LEFT, RIGHT = 0.07, 0.99  # of the figure's width: the time axis
# Bottom and height of each panel, of the figure's height
PHONES, SPECTROGRAM, WEIGHTS = (0.925, 0.065), (0.4, 0.52), (0.135, 0.235)
SILENCES = ("", "sil", "sp", "spn")
STYLE = {
    "font.size": 9,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.usetex": False,
    "text.parse_math": False,  # a phone may be written with dollar signs
}

Interval = tuple[float, float, str]  # start and end in seconds, label


def draw(
    wave: np.ndarray,
    times: np.ndarray,
    alpha: np.ndarray | None = None,
    weights: np.ndarray | None = None,
    phones: Sequence[Interval] = (),
    highlight: int | None = None,
) -> "Figure":
    """Draws an utterance and its frame boundaries.

    wave: (samples,), 16 kHz. times: (frames, 2), start and end of every frame in seconds. alpha: (20 ms frames,), and
    weights (20 ms frames,): what integrate-and-fire sums at this rate; a frame ends where the sum reaches the next
    whole number. phones: written above the spectrogram. highlight: the index of a frame to mark.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, dpi=DPI)
        seconds = len(wave) / SAMPLE_RATE

        def panel(place: tuple[float, float]) -> "Axes":
            axes = figure.add_axes((LEFT, place[0], RIGHT - LEFT, place[1]))
            axes.set_xlim(0, seconds)
            return axes

        draw_phones(panel(PHONES), phones)
        top, below = panel(SPECTROGRAM), panel(WEIGHTS)
        draw_spectrogram(top, wave)
        boundaries = np.append(times[:, 0], times[-1, 1])
        pixels_per_frame = WIDTH * (RIGHT - LEFT) / len(times)
        strength = float(np.clip(pixels_per_frame / 25, 0.2, 0.95))  # dense lines would hide the spectrogram
        top.vlines(boundaries, 0, SAMPLE_RATE / 2000, BOUNDARY, linewidth=0.6, alpha=strength)
        draw_weights(below, alpha, weights)
        if highlight is not None:
            for axes in (top, below):
                axes.axvspan(*times[highlight], color=HIGHLIGHT, alpha=0.6, linewidth=0)
    return figure


def draw_phones(axes: "Axes", phones: Sequence[Interval]) -> None:
    axes.set_axis_off()
    axes.set_ylim(0, 1)
    for start, end, label in phones:
        if label not in SILENCES:
            axes.text((start + end) / 2, 0.5, label, ha="center", va="center", fontsize=8)
        axes.vlines((start, end), 0.1, 0.9, "#bbbbbb", linewidth=0.5)


def draw_spectrogram(axes: "Axes", wave: np.ndarray) -> None:
    level = spectrogram(wave)
    seconds = (level.shape[1] - 0.5) * STEP
    axes.imshow(
        level,
        origin="lower",
        aspect="auto",
        cmap="magma",
        vmin=level.max() - DYNAMIC_RANGE,
        extent=(-STEP / 2, seconds, 0, SAMPLE_RATE / 2000),
    )
    axes.set_xlim(0, len(wave) / SAMPLE_RATE)
    axes.set_ylabel("kHz")
    axes.tick_params(labelbottom=False)


def draw_weights(axes: "Axes", alpha: np.ndarray | None, weights: np.ndarray | None) -> None:
    axes.set_ylim(0, 1.05)
    axes.set_xlabel("seconds")
    if alpha is None:
        axes.text(0.5, 0.5, "no compressor, so no alpha", ha="center", va="center", transform=axes.transAxes)
        return
    edges = np.arange(len(alpha) + 1) * HOP
    axes.stairs(alpha, edges, color=ALPHA, alpha=0.8, fill=True, label="alpha")
    if weights is not None:
        axes.stairs(weights, edges, color=WEIGHT, linewidth=1.1, baseline=None, label="weight at this rate")
    axes.legend(loc="upper right", bbox_to_anchor=(1, -0.22), ncols=2, frameon=False, fontsize=9, handlelength=1.2)


def spectrogram(wave: np.ndarray) -> np.ndarray:
    """The magnitude in dB (frequencies from 0 to 8 kHz, steps of 5 ms) of a wave (samples,), 16 kHz."""
    import torch

    size = round(WINDOW * SAMPLE_RATE)
    samples = torch.from_numpy(np.ascontiguousarray(wave, np.float32))
    window = torch.hann_window(size)
    spectrum = torch.stft(
        samples, size, round(STEP * SAMPLE_RATE), window=window, pad_mode="constant", return_complex=True
    )
    return 20 * np.log10(spectrum.abs().numpy() + 1e-6)


def frame_at(position: float, seconds: float, times: np.ndarray) -> int:
    """The index of the frame drawn at ``position`` (0 to 1 of the figure's width), or of the nearest one.

    seconds: duration of the utterance. times: (frames, 2), in seconds.
    """
    second = (position - LEFT) / (RIGHT - LEFT) * seconds
    return min(int(np.searchsorted(times[:, 1], second, side="right")), len(times) - 1)
