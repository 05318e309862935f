"""Before CTC training: do the frames hold the labels?"""

import math
import pathlib

import pytest
import soundfile
import torch
from superb_corpora import SENTENCES, SPLITS, make_corpora, noise

from s3prl_ofa.io.audio import AudioError
from s3prl_ofa.superb.tasks import configs
from s3prl_ofa.superb.tasks.ctc_feasibility import (
    CtcCheck,
    Utterance,
    check_ctc,
    choose,
    count_frames,
    frames_needed,
    judge,
)
from s3prl_ofa.superb.tasks.labels import labeled
from s3prl_ofa.superb.upstream.expert import UpstreamExpert


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    root = tmp_path_factory.mktemp("corpora")
    make_corpora(root)
    return {"librispeech": str(root / "LibriSpeech"), "prepared": str(root / "prepared")}


@pytest.fixture
def upstream(golden_checkpoint):
    def make(**options) -> UpstreamExpert:
        return UpstreamExpert(golden_checkpoint, **{"output_frames": "native", **options})

    return make


@pytest.fixture
def utterances(tmp_path):
    """Five waves of different lengths; their labels need more frames than they have."""
    found = []
    for index in range(5):
        path = tmp_path / f"{index}.wav"
        soundfile.write(path, noise(0.7 + 0.43 * index, index), 16_000)
        found.append(Utterance(str(path), soundfile.info(path).frames, 10_000))
    return found


@pytest.mark.parametrize(("labels", "frames"), [([], 0), ([4], 1), ([4, 4], 3), ([4, 5, 4], 3), ([4, 4, 4, 5, 5], 8)])
def test_frames_that_ctc_needs(labels, frames):
    """A frame per label, and a blank between equal neighbors; PyTorch's CTC loss is finite from there on."""
    assert frames_needed(labels) == frames
    if labels:
        for count, finite in ((frames, True), (frames - 1, False)):
            if count:
                log_probs = torch.zeros(count, 1, 8).log_softmax(-1)
                loss = torch.nn.functional.ctc_loss(log_probs, torch.tensor([labels]), [count], [len(labels)])
                assert math.isfinite(loss) == finite


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lambd": 0.5},
        {"lambd": 1.0},
        {"lambd": 1.3},
        {"frame_period_ms": 20.0},
        {"frame_period_ms": 47.0},
        {"frame_period_ms": 200.0},
        {"lambd": 1.0, "output_frames": "upsampled"},
    ],
)
def test_frames_are_those_of_the_upstream(options, upstream, utterances):
    """Counted without the encoder, the frames are exactly those that the upstream gives, at any rate."""
    expert = upstream(**options)
    counted = count_frames(expert.model, expert.options, utterances)
    waves = [torch.from_numpy(soundfile.read(utterance.path, dtype="float32")[0]) for utterance in utterances]
    with torch.no_grad():
        assert counted == expert(waves)["hidden_states_len"].tolist()


def test_a_period_that_holds_the_labels_needs_no_audio(upstream, utterances, monkeypatch):
    """With a frame period the frames are known beforehand; the model runs only for utterances that might not fit."""
    expert = upstream(frame_period_ms=40.0)
    easy = [Utterance("nowhere.wav", utterance.samples, 3) for utterance in utterances]
    counted = count_frames(expert.model, expert.options, easy)
    assert counted == [round(utterance.samples / 16 / 40) for utterance in utterances]


def test_judging():
    """At most 1% of the utterances may be without alignment; the smallest repeat that does is found."""
    sample = [Utterance("", 16_000, needed) for needed in [10] * 98 + [21, 41]]
    weights = [1.0] * 100
    check = judge(sample, weights, [20] * 100, repeat=1)
    assert (check.utterances, check.checked, check.infeasible, check.needed_repeat) == (100, 100, 2, 2)
    assert check.too_many and check.frame_period_ms == 50.0
    assert "2 of 100 training utterances, 2.0%" in str(check) and "50.0 ms" in str(check) and "--repeat 2" in str(check)
    again = judge(sample, weights, [20] * 100, repeat=2)
    assert (again.infeasible, again.too_many, again.frame_period_ms) == (1, False, 25.0)
    assert "--repeat" not in str(again)
    # one in a hundred is 1%, which is accepted
    assert not judge(sample[1:] + sample[:1], weights, [40] * 100, repeat=1).too_many
    assert judge([Utterance("", 16_000, 100)], [1.0], [7], repeat=1).needed_repeat == 15


def test_large_corpora_are_sampled_without_bias():
    """Of 20,000 utterances 128 are checked, mostly the densest; the estimates are right all the same."""
    utterances = [Utterance(str(index), 16_000 * 10, 100 + index // 100) for index in range(20_000)]
    sample, weights = choose(utterances)
    assert len(sample) == 128 and round(sum(weights)) == 20_000
    assert (sample, weights) == choose(utterances)
    for limit, true in ((298, 100), (290, 900), (281, 1800), (249, 5000), (149, 15_000)):
        check = judge(sample, weights, [limit] * len(sample), repeat=1)
        assert check.utterances == 20_000 and check.checked == 128 and "estimated from 128" in str(check)
        assert abs(check.infeasible - true) <= 0.1 * true + 20
    few, weights = choose(utterances[:30])
    assert len(few) == 30 and set(weights) == {1.0}


@pytest.mark.parametrize("task", ["asr", "pr"])
def test_labels_are_those_that_s3prl_trains_on(task, roots, upstream):
    """Letters with | and the end symbol for asr, phones and the end symbol for pr, of the training split."""
    config = configs.resolve_config(task, None, True, roots)
    check = check_ctc(task, config, upstream(lambd=0.5))
    assert isinstance(check, CtcCheck) and not check.too_many
    assert check.utterances == check.checked == SPLITS["train-mini"] and 20 < check.frame_period_ms < 60
    # THE CAT: T H E | C A T | </s>; phones DH AH0 K AE1 T <eos>
    labels = dict(labeled(configs.S3PRL_DOWNSTREAM[task], config, "train"))
    first = next(ids for path, ids in labels.items() if path.endswith("0000.flac"))
    assert len(first) == {"asr": len(SENTENCES[0]) + 2, "pr": 6}[task]
    assert all(path.startswith(roots["librispeech"]) for path in labels)


def test_rates_that_lose_labels_are_found(roots, upstream):
    """At a long frame period most sentences do not fit; the repeat in the message is the smallest that works."""
    config = configs.resolve_config("asr", None, True, roots)
    check = check_ctc("asr", config, upstream(lambd=1.9))
    assert check.too_many and check.infeasible > 1 and check.needed_repeat > 1
    enough = check_ctc("asr", config, upstream(lambd=1.9, repeat=check.needed_repeat))
    assert not enough.too_many and enough.frame_period_ms == pytest.approx(check.frame_period_ms / check.needed_repeat)
    assert check_ctc("asr", config, upstream(lambd=1.9, repeat=check.needed_repeat - 1)).too_many
    assert not check_ctc("asr", config, upstream(lambd=1.9, output_frames="upsampled")).too_many


@pytest.mark.parametrize("task", ["asr", "pr"])
def test_files_that_cannot_be_used_are_not_counted(task, tmp_path, upstream, caplog):
    """A file too short for a frame is left out and named before anything divides by its frames."""
    make_corpora(tmp_path)
    short = tmp_path / "LibriSpeech" / "train-mini" / "11" / "22" / "11-22-0003.flac"
    soundfile.write(short, noise(2.0, 3)[:300], 16_000)
    given = {"librispeech": str(tmp_path / "LibriSpeech"), "prepared": str(tmp_path / "prepared")}
    check = check_ctc(task, configs.resolve_config(task, None, True, given), upstream(lambd=0.5))
    assert check.utterances == SPLITS["train-mini"] - 1
    assert "1 of 6 utterances are left out" in caplog.text and f"{short} (300 samples" in caplog.text


def test_a_damaged_file_is_named(upstream, utterances):
    """Audio that can no longer be read is an AudioError that names the file."""
    path = pathlib.Path(utterances[2].path)
    path.write_bytes(path.read_bytes()[:-2000])
    expert = upstream(lambd=0.5)
    with pytest.raises(AudioError, match=f"{path}: cut short"):
        count_frames(expert.model, expert.options, utterances)


def test_other_tasks_are_not_checked(roots, upstream):
    """SID has no CTC."""
    assert check_ctc("sid", {}, upstream()) is None and check_ctc("voxceleb1", {}, upstream()) is None
