"""Windows for long utterances: the same frames and times, nearly the same hidden states, in bounded memory."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from s3prl_ofa.model.packing import positions_of
from s3prl_ofa.model.windows import ROWS_AT_A_TIME, cut


@pytest.mark.parametrize(("window", "overlap"), [(1, 0), (4, 0), (4, 3), (7, 2), (10, 5), (100, 20)])
def test_every_frame_is_given_once(window, overlap):
    """In order, by a window that also reads it; no window is longer than asked for; short utterances stay whole."""
    lengths = torch.tensor([1, 3, 10, 11, 12, 57, 100])
    whole = lengths <= window
    read, size, given, given_size = cut(lengths, torch.full_like(lengths, window), torch.full_like(lengths, overlap))
    assert torch.equal(positions_of(given_size, given), torch.arange(int(lengths.sum())))
    assert bool(((read <= given) & (given + given_size <= read + size)).all())
    assert bool((size <= window).all()) and bool((given_size > 0).all())
    starts = torch.cumsum(lengths, 0) - lengths
    utterance = torch.searchsorted(starts, read, right=True) - 1
    assert torch.equal(torch.bincount(utterance)[whole], torch.ones(int(whole.sum()), dtype=torch.long))
    assert bool((read + size <= (starts + lengths)[utterance]).all())


def test_context_on_both_sides():
    """Inside an utterance a window reads half the overlap before and after the frames that it gives."""
    read, size, given, given_size = cut(torch.tensor([100]), torch.tensor([20]), torch.tensor([8]))
    assert (given - read)[1:].tolist() == [4] * (len(read) - 1)
    assert (read + size - given - given_size)[:-1].tolist() == [4] * (len(read) - 1)


@pytest.fixture(scope="module")
def bundled():
    import s3prl_ofa

    return s3prl_ofa.load("tiny")


@pytest.fixture(scope="module")
def minute():
    """A minute of the bundled speech."""
    from s3prl_ofa.io.audio import SAMPLE_RATE, find_audio, load_audio
    from s3prl_ofa.resources import AUDIO

    waves = [torch.from_numpy(load_audio(path)) for path in sorted(find_audio(AUDIO / "test"))]
    return torch.cat(waves)[: 60 * SAMPLE_RATE]


@pytest.mark.parametrize("rate", [{"lambd": 0.0}, {"lambd": 0.5}, {"frame_period_ms": 60.0}], ids=str)
def test_close_to_the_whole(bundled, minute, rate):
    """Frames and times are those of the whole; hidden states differ, by a cosine above 0.9, also at the seams."""
    whole, out = (bundled.extract([minute], layers=[0, 6], **rate, **window) for window in ({}, {"window_s": 20.0}))
    for name in ("lengths", "times", "lambd", "frame_index"):
        assert torch.equal(getattr(out, name), getattr(whole, name))
    assert len(out.hidden_states) == 2
    for state, expected in zip(out.hidden_states, whole.hidden_states, strict=True):
        similarity = cosine_similarity(state, expected, dim=-1)
        assert float(similarity.min()) > 0.9 and float(similarity.mean()) > 0.985
    assert not torch.equal(out.hidden_states[1], whole.hidden_states[1])  # attention did not see the whole


def test_short_ones_stay_whole(bundled, minute):
    """In a batch with longer ones, an utterance that fits into a window is what it is without windows."""
    waves = [minute[:80_000], minute, minute[5000:200_000]]
    out = bundled.extract(waves, lambd=0.5, layers=[6], window_s=15.0, overlap_s=2.0)
    for index in (0, 2):
        alone = bundled.extract([waves[index]], lambd=0.5, layers=[6])
        state = out.hidden_states[0][index, : int(out.lengths[index])]
        torch.testing.assert_close(state, alone.hidden_states[0][0], atol=1e-4, rtol=0)
    assert float(out.hidden_states[0][0, int(out.lengths[0]) :].abs().max()) == 0.0


@pytest.mark.parametrize("frames", [1, 500])
def test_how_many_windows_the_encoder_gets_at_once(bundled, minute, frames, monkeypatch):
    """It bounds memory and changes nothing: one window, some windows and all windows at once are the same."""
    waves = [minute[:400_000], minute[5000:200_000]]
    monkeypatch.setitem(ROWS_AT_A_TIME, "cpu", 10**9)
    expected = bundled.extract(waves, lambd=0.5, layers=[0, 6], window_s=5.0, overlap_s=2.0)
    monkeypatch.setitem(ROWS_AT_A_TIME, "cpu", frames)
    out = bundled.extract(waves, lambd=0.5, layers=[0, 6], window_s=5.0, overlap_s=2.0)
    torch.testing.assert_close(out.hidden_states, expected.hidden_states, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("window_s", "overlap_s"),
    [(0.0, 0.0), (4.0, 4.0), (10.0, -1.0), (float("inf"), 4.0), ("9", 1.0), (9.0, None)],
)
def test_refused(bundled, minute, window_s, overlap_s):
    """Windows that do not advance, or are no numbers."""
    with pytest.raises(ValueError, match="window_s must be finite and greater than overlap_s"):
        bundled.extract([minute], window_s=window_s, overlap_s=overlap_s)


def test_longer_than_any_audio(bundled, minute):
    """A window of more frames than an integer holds is the whole utterance."""
    found = bundled.extract([minute[:50_000]], window_s=1e18, overlap_s=4e17).hidden_states[-1]
    torch.testing.assert_close(found, bundled.extract([minute[:50_000]]).hidden_states[-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("layers", [[6], [0, 3], [3, 0], (1,)])
def test_chosen_hidden_states(bundled, minute, layers):
    """A list of layers gives these hidden states, in its order, equal to those among all."""
    wave = [minute[:50_000]]
    everything, chosen = bundled.extract(wave).hidden_states, bundled.extract(wave, layers=layers).hidden_states
    assert len(chosen) == len(layers)
    for state, number in zip(chosen, layers, strict=True):
        assert torch.equal(state, everything[number])


@pytest.mark.parametrize("layers", [[], [7], [-1], ["1"], "12", True, 7])
def test_refused_layers(bundled, minute, layers):
    """No layer, and one that is not there."""
    with pytest.raises(ValueError, match="layers must be a whole number from 0 to 6 or a list of them"):
        bundled.extract([minute[:8000]], layers=layers)
