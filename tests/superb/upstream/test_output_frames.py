"""Which frames S3PRL's tasks get: native ones only where labels cannot come to stand beside their frames."""

import importlib.util
import pathlib

import numpy as np
import pytest
import soundfile
import torch
import yaml
from paths import CKPT
from superb_corpora import noise

from s3prl_ofa import cli
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.upstream import output_frames
from s3prl_ofa.superb.upstream.rate_options import RateOptions, read_model_config
from s3prl_ofa.sweep.grid.jobs import points_of
from s3prl_ofa.sweep.grid.schema import grid_from

SAMPLE_RATE = 16_000  # Hz
HOP = 320  # samples
TURNS = ((0.0, 1.0), (1.0, 2.2), (2.2, 3.0))  # seconds; speakers take turns


def test_every_task_of_s3prl_is_in_the_table_once():
    """Each folder of s3prl/downstream with an expert has its kind, so that none is left to chance."""
    (folder,) = importlib.util.find_spec("s3prl.downstream").submodule_search_locations
    there = sorted(path.parent.name for path in pathlib.Path(folder).glob("*/expert.py"))
    assert sorted([*output_frames.NATIVE_TASKS, *output_frames.REASONS]) == there


@pytest.mark.parametrize(
    ("frames", "tasks"),
    [
        ("native", "asr pr sid ctc voxceleb1 fluent_commands emotion speech_commands sv_voxceleb1"),
        ("upsampled", "diarization quesst14_dtw quesst14_embedding separation_stft2 timit_phone_linear"),
        ("upsampled", "phone_linear enhancement_stft a2o-vc-vcc2020 mos_prediction mosei my_own_task"),
    ],
)
def test_frames_are_chosen_by_task(frames, tasks):
    """Utterance-level and CTC tasks get native frames, all others upsampled ones, which any task may have."""
    for task in tasks.split():
        assert output_frames.options_for(task, {"lambd": 0.5}) == RateOptions(lambd=0.5, output_frames=frames)
        assert output_frames.options_for(task, {"pool": 2}).output_frames == frames
        assert output_frames.options_for(task, {}, {"output_frames": "upsampled"}).output_frames == "upsampled"


@pytest.mark.parametrize(
    ("task", "reason"),
    [
        ("diarization", "labels at a constant rate"),
        ("quesst14_dtw", "queries of fewer than 5 frames"),
        ("separation_stft", "spectrogram"),
        ("mos_prediction", "same number of frames"),
        ("my_own_task", "not known"),
    ],
)
@pytest.mark.parametrize("asked", [{"output_frames": "native"}, {"repeat": 2}])
def test_native_frames_are_refused_with_the_reason(task, reason, asked):
    """Native frames, or repeated ones, which are native too, are refused where they are wrong, whichever layer asks."""
    for layers in ((asked, {"lambd": 0.5}), ({"lambd": 0.5}, asked)):
        with pytest.raises(UsageError, match=f"^{task} .*{reason}.* needs output_frames upsampled, found"):
            output_frames.options_for(task, *layers)


@pytest.mark.parametrize("own", [True, False])
def test_sweeps_know_the_frames_too(own):
    """A grid gives each task its frames, and one that asks for the wrong ones is refused by its key."""
    task = {"config": "sd.yaml", "metric": "der"}
    grid = {"checkpoints": {"tiny": CKPT}, "rates": {"lambd": 0.5}, "repeat": [1, 2]}
    grid["tasks"] = {"diarization": task, "fluent_commands": {"config": "ic.yaml", "metric": "acc"}}
    found = {(point.task, point.output_frames, point.asked_repeat) for point in points_of(grid_from(grid))}
    assert found == {
        ("diarization", "upsampled", 1),
        ("fluent_commands", "native", 1),
        ("fluent_commands", "native", 2),
    }
    (task if own else grid)["output_frames"] = ["upsampled", "native"]
    with pytest.raises(
        UsageError, match=f"^{'tasks.diarization.' if own else ''}output_frames: diarization has labels"
    ):
        grid_from(grid)
    del (task if own else grid)["output_frames"]
    task["repeat"] = 2
    with pytest.raises(UsageError, match="^tasks.diarization.repeat: diarization has labels"):
        grid_from(grid)


@pytest.fixture(scope="module")
def conversations(tmp_path_factory) -> pathlib.Path:
    """Two recordings of two speakers in Kaldi's form, for train, dev and test alike, and S3PRL's config for them."""
    root = tmp_path_factory.mktemp("conversations")
    files = {"segments": "", "utt2spk": "", "wav.scp": "", "reco2dur": "", "spk2utt": ""}
    for number in range(2):
        soundfile.write(root / f"rec{number}.wav", noise(TURNS[-1][1], number), SAMPLE_RATE)
        files["wav.scp"] += f"rec{number} {root}/rec{number}.wav\n"
        files["reco2dur"] += f"rec{number} {TURNS[-1][1]}\n"
        for turn, (start, end) in enumerate(TURNS):
            files["segments"] += f"rec{number}-{turn} rec{number} {start} {end}\n"
            files["utt2spk"] += f"rec{number}-{turn} speaker{turn % 2}\n"
    for name, text in files.items():
        (root / name).write_text(text)
    expert = {
        "loaderrc": {"num_workers": 0, "train_batchsize": 2, "eval_batchsize": 1}
        | {f"{split}_dir": str(root) for split in ("train", "dev", "test")},
        "datarc": {"chunk_size": 100, "num_speakers": 2, "label_delay": 0, "rate": SAMPLE_RATE, "subsampling": 1},
        "modelrc": {"rnn_layers": 1, "hidden_size": 8},
        "scorerc": {"save_predictions": False},
    }
    runner = dict.fromkeys(("total_steps", "eval_step", "save_step", "log_step"), 2)
    runner |= {"gradient_clipping": 1, "gradient_accumulate_steps": 1, "max_keep": 1, "eval_dataloaders": ["dev"]}
    optimizer = {"name": "TorchOptim", "torch_optim_name": "Adam", "lr": 0.001}
    config = {"runner": runner, "optimizer": optimizer, "downstream_expert": expert}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return root


@pytest.fixture
def diarize(conversations, tmp_path, monkeypatch):
    """A function (*options) that trains S3PRL's speaker diarization in an empty folder, in ``exp``."""
    monkeypatch.chdir(tmp_path)
    task = ["-m", "train", "-d", "diarization", "-c", str(conversations / "config.yaml"), "-p", "exp"]
    task += ["-u", "ofa_wav2vec2", "-k", CKPT]
    return lambda *options: cli.main(["run_downstream", *task, *options])


@pytest.fixture
def seen(monkeypatch):
    """(frames (T, dim), labels (T, speakers)) of each utterance that S3PRL's diarization was given."""
    expert = importlib.import_module("s3prl.downstream.diarization.expert")
    pairs = []
    forward = expert.DownstreamExpert.forward

    def spy(self, mode, features, labels, *args, **kwargs):
        pairs.extend(zip((feature.detach() for feature in features), labels, strict=True))
        return forward(self, mode, features, labels, *args, **kwargs)

    monkeypatch.setattr(expert.DownstreamExpert, "forward", spy)
    return pairs


@pytest.mark.parametrize("rate", [("--lambd", "1"), ("--pool", "3"), ("--lambd", "adaptive", "--rate-weight", "1")])
def test_diarization_sees_each_label_beside_its_frame(diarize, seen, rate):
    """S3PRL's diarization trains and evaluates on frames of 20 ms whatever the rate, one beside each label, and keeps
    that with the experiment."""
    assert diarize(*rate) == 0
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", "exp"]) == 0
    stored = torch.load("exp/states-2.ckpt", weights_only=True)["Args"].upstream_model_config
    assert RateOptions.layered(read_model_config(stored)).output_frames == "upsampled"
    assert len(seen) >= 8
    for frames, labels in seen:
        # a wave that is cut between two labels leaves its last 5 ms without a frame
        assert 0 <= len(labels) - len(frames) <= 1


def test_labels_and_frames_are_of_the_same_time(diarize, seen, monkeypatch):
    """Each frame comes from where its label is; native frames, tiled and cut by S3PRL, are off by more than 500 ms."""
    expert = importlib.import_module("s3prl_ofa.superb.upstream.expert")
    extract = expert.UpstreamExpert.extract

    def marked(self, waves):
        """Each compressed frame's hidden states are its middle in seconds."""
        out = extract(self, waves)
        middle = out.times.mean(-1, keepdim=True).float()
        return expert.dataclasses.replace(out, hidden_states=tuple(h * 0 + middle for h in out.hidden_states))

    monkeypatch.setattr(expert.UpstreamExpert, "extract", marked)
    assert diarize("--lambd", "0.5", "-l", "0") == 0
    for frames, _ in seen:
        labelled_at = (np.arange(len(frames)) + 0.5) * HOP / SAMPLE_RATE
        assert np.abs(frames[:, 0].numpy() - labelled_at).max() < 0.1  # seconds


@pytest.mark.parametrize(
    "options", [("--output-frames", "native"), ("--repeat", "2"), ("-g", "{output_frames: native}")]
)
def test_native_diarization_is_refused(diarize, options, capfd):
    """One sentence with the reason, and nothing is written."""
    assert diarize("--lambd", "0.5", *options) == 2
    assert "diarization has labels at a constant rate" in capfd.readouterr().err.splitlines()[-1]
    assert not pathlib.Path("exp").exists()


def test_an_experiment_on_native_frames_is_refused(diarize, capfd):
    """One from before, trained on misaligned labels, is neither evaluated nor resumed, and the message says what to do;
    upsampled frames can be asked for."""
    assert diarize("--lambd", "0.5") == 0
    states = torch.load("exp/states-2.ckpt", weights_only=True)
    states["Args"].upstream_model_config = "{frames: native, lambd: 0.5}"  # as earlier versions stored it
    torch.save(states, "exp/states-2.ckpt")
    for mode in ("evaluate", "train"):
        assert cli.main(["run_downstream", "-m", mode, "-e", "exp"]) == 2
        message = capfd.readouterr().err.splitlines()[-1]
        assert "trained on native ones: train a new one (-n or -p)" in message
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", "exp", "--output-frames", "upsampled"]) == 0
