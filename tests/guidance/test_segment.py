"""Segmentation of speech without labels: the dynamic programming, its features and codes, the command."""

import itertools
import json
import pickle

import numpy as np
import pytest
import safetensors.numpy
import soundfile
from guidance_data import contents, guidance, make_speech, tones, write_manifest

from s3prl_ofa.errors import UsageError
from s3prl_ofa.guidance import unsupervised
from s3prl_ofa.guidance.features import CheckpointHidden, Mfcc, UpstreamHidden, beginning_with, features_of
from s3prl_ofa.guidance.layout import GuidanceError, boundary_seconds, num_frames, read_boundaries
from s3prl_ofa.guidance.scores import boundary_scores
from s3prl_ofa.guidance.segmentation import best_segmentation, distances, mean_period_ms, segment_costs, solve_penalty
from s3prl_ofa.guidance.work import Entry
from s3prl_ofa.io.audio import AudioError


def cost_of(segments, distance, penalty) -> float:
    """The objective of arXiv 2012.07551, term by term; segments are (start, end) frames."""
    return sum(distance[:, start:end].sum(1).min() - penalty * (end - start - 1) for start, end in segments)


def all_segmentations(frames: int, longest: int):
    """Every way to cut ``frames`` frames into segments of at most ``longest``, as (start, end) pairs."""
    for cuts in itertools.product([False, True], repeat=frames - 1):
        edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), frames]
        if max(np.diff(edges)) <= longest:
            yield list(itertools.pairwise(edges))


@pytest.mark.parametrize("longest", [1, 2, 3, 50])
@pytest.mark.parametrize("penalty", [0.0, 0.3, 1.0, 5.0])
def test_no_segmentation_is_cheaper(longest, penalty):
    """No segmentation costs less than the one found, for every length up to 9 frames."""
    random = np.random.default_rng(round(10 * penalty) + longest)
    for frames in range(1, 10):
        features, codes = random.standard_normal((frames, 2)), random.standard_normal((3, 2))
        distance = distances(features.astype(np.float32), codes.astype(np.float32))
        found = best_segmentation(segment_costs(distance, longest), penalty)
        assert found[-1] == frames and (np.diff(found, prepend=0) >= 1).all()
        segments = list(itertools.pairwise([0, *found.tolist()]))
        assert max(end - start for start, end in segments) <= longest
        least = min(cost_of(each, distance, penalty) for each in all_segmentations(frames, longest))
        assert cost_of(segments, distance, penalty) == pytest.approx(least, abs=1e-5)


def test_distances_and_costs():
    """Squared distances, never negative; a row of costs belongs to the segments that end with its frame."""
    random = np.random.default_rng(0)
    features, codes = (random.standard_normal((n, 4)).astype(np.float32) for n in (7, 3))
    distance = distances(features, codes)
    assert np.allclose(distance, ((codes[:, None] - features[None]) ** 2).sum(2), atol=1e-5)
    assert (distances(codes * 1e3, codes * 1e3) >= 0).all()
    costs = segment_costs(distance, 3)
    for frame in range(7):
        for length in (1, 2, 3):
            start = frame + 1 - length
            expected = distance[:, start : frame + 1].sum(1).min() if start >= 0 else np.inf
            assert costs[frame, 3 - length] == pytest.approx(expected, rel=1e-5)


def test_longer_penalty_longer_segments():
    """The period grows with the penalty up to the longest segment, and the penalty for a given period is found."""
    random = np.random.default_rng(0)
    codes = random.standard_normal((8, 3)).astype(np.float32)
    costs = [segment_costs(distances(random.standard_normal((n, 3)).astype(np.float32), codes), 10) for n in (90, 150)]
    samples = [90 * 320, 150 * 320]
    periods = [mean_period_ms(costs, samples, penalty) for penalty in (0, 0.5, 1, 2, 1e6)]
    assert periods == sorted(periods) and periods[-1] == 200
    penalty, reached = solve_penalty(costs, samples, 80)
    assert reached == mean_period_ms(costs, samples, penalty) == pytest.approx(80, rel=0.03)
    for wanted in (20, 300):
        with pytest.raises(ValueError, match="are impossible"):
            solve_penalty(costs, samples, wanted)


def test_mfcc_frames_are_those_of_the_model():
    """As many frames as the front end makes, whatever the length; a click is loudest in the frame centered on it."""
    source = Mfcc()
    for samples in (400, 719, 720, 16_123):
        assert source(tones(2, 0)[0][:samples]).shape == (num_frames(samples), 13)
    silence = np.zeros(16_000, np.float32)
    assert np.isfinite(source(silence)).all()
    for frame in (0, 10, 48):
        wave = 1e-4 * np.random.default_rng(0).standard_normal(16_000).astype(np.float32)
        wave[320 * frame + 200] = 0.5
        assert source(wave)[:, 0].argmax() == frame


def test_hidden_states_of_a_checkpoint_and_of_an_upstream(golden_checkpoint, golden_model):
    """A layer of a checkpoint is the model's without compression, and S3PRL's hub gives the same through ofa_wav2vec2;
    of an upstream with 10 ms frames every second one is used."""
    wave = tones(1.03, 1)[0]
    expected = golden_model.extract([wave]).hidden_states[1][0].numpy()
    source = CheckpointHidden(str(golden_checkpoint), 1, "cpu")
    assert np.allclose(source(wave), expected, atol=1e-6)
    sent = pickle.dumps(source)  # to another process, without the model
    assert len(sent) < 1000 and np.allclose(pickle.loads(sent)(wave), expected, atol=1e-6)
    hub = UpstreamHidden("ofa_wav2vec2", str(golden_checkpoint), 1, "cpu")
    assert np.allclose(hub(wave), expected, atol=1e-4)
    assert UpstreamHidden("mfcc", None, 0, "cpu")(wave).shape == (num_frames(len(wave)), 39)
    assert beginning_with(4, 6, 160).tolist() == [0, 2, 4, 5]


def test_sources_that_cannot_be(golden_checkpoint):
    """Unknown upstreams and layers, and upstreams that do not load, are refused by name."""
    for make, said in (
        (lambda: CheckpointHidden(str(golden_checkpoint), 3, "cpu"), "--layer must be 0 to 2"),
        (lambda: UpstreamHidden("mfcc", None, 1, "cpu"), "--layer must be 0 to 0 for mfcc"),
        (lambda: UpstreamHidden("no_such", None, 0, "cpu"), "S3PRL has none of this name"),
        (lambda: UpstreamHidden("ofa_wav2vec2", "no.pt", 0, "cpu"), "cannot be loaded"),
    ):
        with pytest.raises(UsageError, match=said):
            make()


@pytest.fixture
def speech(tmp_path):
    """Twelve utterances of tones and their manifest."""
    samples = make_speech(tmp_path / "audio", 12, seconds=1.5)
    return write_manifest(tmp_path / "train.tsv", tmp_path / "audio", samples)


@pytest.fixture
def segment(tmp_path, speech):
    """Runs the command with few codes; the output folder is ``tmp_path / "out"``."""

    def run(*options, out=tmp_path / "out") -> int:
        return guidance("segment", "--manifest", speech, "--out", out, "--jobs", 1, *options)

    return run


def test_tones_are_found(segment, tmp_path):
    """Boundaries lie where the tones change, at the requested mean length, and every frame has its segment."""
    assert segment("--clusters", 8, "--period-ms", 130) == 0
    found, wanted, seconds = [], [], 0.0
    for number in range(12):
        wave, changes = tones(1.5 + 0.01 * number, number)
        boundaries = read_boundaries(tmp_path / "out" / "boundaries", f"v1.{number % 3}/utt.{number}.wav")
        assert int(boundaries[-1]) == num_frames(len(wave))
        found.append(boundary_seconds(boundaries[:-1]).numpy())
        wanted.append(changes)
        seconds += len(wave) / 16_000
    assert 1000 * seconds / (sum(map(len, found)) + 12) == pytest.approx(130, rel=0.05)
    assert boundary_scores(found, wanted, 0.02).f1 > 0.9


def test_second_run_uses_the_same_codes_and_penalty(segment, tmp_path, monkeypatch, capsys):
    """Codes and penalty are made once: a resumed run neither trains nor solves again, --codes reads other codes, and
    different numbers are refused."""
    assert segment("--clusters", 8) == 0
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "alpha" / "v1.1" / "utt.1.pt").unlink()
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["penalty"] > 0 and settings["period_ms"] == 90

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(unsupervised, "sample_features", refuse)
    assert segment() == 0
    assert contents(tmp_path / "out") == before
    codes = tmp_path / "out" / "codes.safetensors"
    penalty = ("--penalty", settings["penalty"])
    assert segment(*penalty, "--codes", codes, out=tmp_path / "other") == 0
    assert contents(tmp_path / "other") == before
    assert segment("--clusters", 9) == 2 and segment("--penalty", 1) == 2 and segment("--longest", 20) == 2
    error = capsys.readouterr().err
    assert "has 8 codes, not 9" in error and "penalty 11" in error and "longest 50" in error


def test_same_seed_same_guidance(segment, tmp_path):
    """The command is deterministic, and --force gives the same again."""
    assert segment("--clusters", 8) == segment("--clusters", 8, out=tmp_path / "again") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "again")
    assert segment("--clusters", 8, "--force") == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_bad_audio_does_not_stop_the_rest(segment, tmp_path, capsys):
    """Damaged, missing and changed files are reported with their reason, status 1, and the others are done."""
    audio = tmp_path / "audio"
    (audio / "v1.0" / "utt.0.wav").write_bytes(b"RIFF")
    (audio / "v1.1" / "utt.1.wav").unlink()
    soundfile.write(audio / "v1.2" / "utt.2.wav", tones(0.7, 0)[0], 16_000)
    assert segment("--clusters", 8, "--penalty", 5) == 1
    said = capsys.readouterr()
    assert "9 of 12 utterances written" in said.out and "3 utterances were left out" in said.err
    assert "utt.1.wav: no such file" in said.err and "has 11200 samples at 16000 Hz, the manifest says" in said.err
    for number in range(3):
        wave = tones(1.5 + 0.01 * number, number)[0]
        soundfile.write(audio / f"v1.{number}" / f"utt.{number}.wav", wave, 16_000)
    assert segment("--penalty", 5) == 0
    assert "3 of 12 utterances written, 9 already done" in capsys.readouterr().out


def test_checkpoint_as_features(segment, golden_checkpoint, tmp_path):
    """--ckpt and --layer work in the command; codes know their features."""
    assert segment("--ckpt", golden_checkpoint, "--layer", 2, "--clusters", 8, "--penalty", 1) == 0
    assert len(contents(tmp_path / "out")) == 24
    codes = tmp_path / "out" / "codes.safetensors"
    assert safetensors.numpy.load_file(codes)["codes"].shape == (8, golden_width(golden_checkpoint))
    assert segment("--codes", codes, out=tmp_path / "mfcc") == 2


def golden_width(path) -> int:
    import s3prl_ofa

    return s3prl_ofa.load(path).config.dim


def test_bad_use(segment, tmp_path, capsys):
    """Each impossible request is one line, status 2."""
    (tmp_path / "bad.safetensors").write_bytes(b"no codes")
    for options, said in (
        (("--period-ms", 0), "--period-ms must be a number above 0"),
        (("--penalty", "nan"), "--penalty must be a number above 0"),
        (("--clusters", 0), "--clusters must be at least 1"),
        (("--longest", 0), "--longest must be at least 1"),
        (("--layer", 1), "--layer is required with --ckpt or --upstream"),
        (("--ckpt", "x.pt"), "--layer is required with"),
        (("--ckpt", "x.pt", "--layer", 1), "x.pt: no such file"),
        (("--codes", tmp_path / "bad.safetensors"), "codes cannot be read"),
        (("--codes", tmp_path / "no.safetensors"), "codes cannot be read"),
        (("--codes", "x", "--clusters", 5), "give only one of them"),
        (("--clusters", 100_000), "there are only"),
        (("--clusters", 8, "--period-ms", 5000), "--period-ms: segments of 5000 ms are impossible"),
        (("--device", "cuda:99"), "MFCCs are computed on the cpu"),
        (("--ckpt", "x.pt", "--layer", 1, "--device", "toaster"), "device toaster is unknown"),
    ):
        assert segment(*options) == 2, options
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    for path in (tmp_path / "audio").rglob("*.wav"):
        path.write_bytes(b"")
    assert segment(out=tmp_path / "none") == 2
    assert "none of the 12 drawn utterances can be used; the first" in capsys.readouterr().err


def test_wave_is_what_training_reads(tmp_path):
    """Features need audio that pretraining can use: 16 kHz mono, of the manifest's length; and they must be finite."""
    path = tmp_path / "a.wav"
    soundfile.write(path, tones(1.0, 0)[0], 16_000)
    assert features_of(Mfcc(), Entry(tmp_path, "a.wav", 16_000)).shape == (num_frames(16_000), 13)
    with pytest.raises(GuidanceError, match="has 16000 samples at 16000 Hz, the manifest says 12000"):
        features_of(Mfcc(), Entry(tmp_path, "a.wav", 12_000))
    for value in (np.nan, np.inf):
        with pytest.raises(GuidanceError, match="expected 49 frames of finite values"):
            features_of(lambda wave, value=value: np.full((49, 13), value), Entry(tmp_path, "a.wav", 16_000))
    soundfile.write(path, np.stack([tones(1.0, 0)[0]] * 2, 1), 16_000)
    with pytest.raises(AudioError, match="with 2 channels; expected 16000 Hz mono"):
        features_of(Mfcc(), Entry(tmp_path, "a.wav", 16_000))
