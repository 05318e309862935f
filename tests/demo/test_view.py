"""What the page and the notebook draw: frames, weights and phones of an utterance at one rate."""

import numpy as np
import pytest

import s3prl_ofa
from s3prl_ofa.demo import figures, view
from s3prl_ofa.io.audio import SAMPLE_RATE, load_audio

NAMES = [name for part in ("train", "dev", "test") for name in view.examples(part)]


@pytest.fixture(scope="module")
def model():
    return s3prl_ofa.load("tiny")


@pytest.fixture(scope="module")
def utterance(model):
    name = next(iter(view.examples()))
    return view.analyse(model, load_audio(view.example_path(name)), view.example_phones(name))


@pytest.mark.parametrize("period_ms", [20.0, 47.0, 90.0])
def test_view_at(model, utterance, period_ms):
    """The number of frames is as requested, frame k ends where the weights have summed to k, and memory is that of the
    frames; 90 ms needs lambd above 1."""
    seen = view.view_at(model, utterance, period_ms)
    frames = min(round(1000 * utterance.seconds / period_ms), len(utterance.alpha))
    assert len(seen.times) == frames and (seen.lambd > 1) == (period_ms == 90)
    edges = np.arange(len(seen.weights) + 1) * figures.HOP
    summed = np.interp(seen.times[:, 1], edges, np.append(0, seen.weights.cumsum()))
    np.testing.assert_allclose(summed, np.arange(1, frames + 1), atol=1e-6)
    assert seen.megabytes == pytest.approx((model.config.layers + 1) * frames * model.config.dim * 4 / 1e6)
    assert seen.milliseconds > 0 and seen.mmacs > 0


def test_frame_audio(model, utterance):
    """The audio of all frames, concatenated, is the utterance up to the end of the last frame."""
    seen = view.view_at(model, utterance, 60.0)
    pieces = [seen.frame_audio(frame) for frame in range(len(seen.times))]
    np.testing.assert_array_equal(np.concatenate(pieces), utterance.wave[: round(seen.times[-1, 1] * SAMPLE_RATE)])


def test_frame_at(model, utterance):
    """A frame is found where it is drawn; beyond the ends it is the first or the last."""
    seen = view.view_at(model, utterance, 60.0)
    width = figures.RIGHT - figures.LEFT
    for frame, middle in enumerate(seen.times.mean(1)):
        position = figures.LEFT + width * middle / utterance.seconds
        assert figures.frame_at(position, utterance.seconds, seen.times) == frame
    assert figures.frame_at(0.0, utterance.seconds, seen.times) == 0
    assert figures.frame_at(1.0, utterance.seconds, seen.times) == len(seen.times) - 1


def test_draw(model, utterance):
    """Phones above, boundaries on the spectrogram, alpha and weights below; a highlighted frame is marked in both."""
    seen = view.view_at(model, utterance, 60.0)
    phones, spectrogram, weights = seen.draw().axes
    spoken = [label for _, _, label in utterance.phones if label != "sil"]
    assert [text.get_text() for text in phones.texts] == spoken
    (lines,) = spectrogram.collections
    drawn = [segment[0, 0] for segment in lines.get_segments()]
    np.testing.assert_allclose(drawn, [*seen.times[:, 0], seen.times[-1, 1]])
    assert [text.get_text() for text in weights.get_legend().get_texts()] == ["alpha", "weight at this rate"]
    np.testing.assert_array_equal(weights.patches[0].get_data().values, utterance.alpha)
    assert all(axes.get_xlim() == (0, utterance.seconds) for axes in (phones, spectrogram, weights))

    marked = seen.draw(highlight=3)
    for axes, before in zip(marked.axes[1:], (0, len(weights.patches)), strict=True):
        (mark,) = axes.patches[before:]
        assert (mark.get_x(), mark.get_x() + mark.get_width()) == pytest.approx(tuple(seen.times[3]))


def test_spectrogram_of_a_tone():
    """A tone of 3 kHz is loudest at 3 kHz, at every moment."""
    wave = np.sin(2 * np.pi * 3000 * np.arange(SAMPLE_RATE) / SAMPLE_RATE).astype(np.float32)
    level = figures.spectrogram(wave)
    assert level.shape[1] == 1 + round(1 / figures.STEP)
    assert (level[:, 5:-5].argmax(0) * 8000 / (len(level) - 1) == 3000).all()


def test_bad_wave(model):
    """A wave that the model does not accept is refused with the reason."""
    with pytest.raises(ValueError, match="at least 400"):
        view.analyse(model, np.zeros(399, np.float32))


def test_phones_of_the_bundled_audio():
    """Every bundled utterance has its phones, without gaps to the end of its audio; vowels are louder than pauses."""
    assert len(NAMES) == 120
    levels: dict[str, list[float]] = {"iː": [], "eɪ": [], "sil": []}
    for name in NAMES:
        wave, phones = load_audio(view.example_path(name)), view.example_phones(name)
        starts, ends, _ = zip(*phones, strict=True)
        np.testing.assert_allclose(starts[1:], ends[:-1], atol=1.5e-3)
        assert starts[0] < 0.1 and ends[-1] == pytest.approx(len(wave) / SAMPLE_RATE, abs=1e-3)
        for start, end, label in phones:
            if label in levels:
                piece = wave[round(start * SAMPLE_RATE) : round(end * SAMPLE_RATE)]
                levels[label].append(float(np.sqrt((piece**2).mean())))
    loudness = {label: np.mean(values) for label, values in levels.items()}
    assert min(loudness["iː"], loudness["eɪ"]) > 5 * loudness["sil"]
