"""ASR, PR and SID through S3PRL's training loop, on a few synthetic utterances, at any rate."""

import importlib
import json
import logging
import pathlib
import re

import pytest
import torch
import yaml
from cached import on_disk
from paths import CKPT, ROOT
from superb_corpora import SPEAKERS

from s3prl_ofa import cli
from s3prl_ofa.model.frontend import FrontEnd
from s3prl_ofa.superb.compat import shims
from s3prl_ofa.superb.downstream.command import run_downstream
from s3prl_ofa.superb.downstream.parser import divide
from s3prl_ofa.superb.upstream.rate_options import RateOptions, read_model_config

STEPS = "config.runner.total_steps={0},,config.runner.eval_step=2,,config.runner.save_step=2,,config.runner.log_step=2"
SPLIT = {"asr": "test-clean", "pr": "test", "sid": "test"}


@pytest.fixture
def command(corpora, tmp_path, monkeypatch):
    """A function (*options, upstream=..., steps=...) that calls the command line in an empty folder."""
    monkeypatch.chdir(tmp_path)
    data = ["--librispeech", str(corpora / "LibriSpeech"), "--voxceleb1", str(corpora / "VoxCeleb1")]
    data += ["--prepared", str(corpora / "prepared"), "--mini"]

    def call(*options, upstream=("-u", "ofa_wav2vec2", "-k", CKPT), steps=2):
        if "-e" in options:
            return cli.main(["run_downstream", *options])
        return cli.main(["run_downstream", *options, *upstream, *data, "-o", STEPS.format(steps)])

    return call


@pytest.fixture
def seen_frames(monkeypatch):
    """Frames and 20 ms frames that S3PRL's downstream models get, one pair per utterance."""
    module = importlib.import_module("s3prl_ofa.superb.upstream.featurizer")
    pairs = []
    forward = module.LengthAwareFeaturizer.forward

    def spy(self, waves, features):
        found = forward(self, waves, features)
        pairs.extend((len(feature), (len(wave) - 400) // 320 + 1) for feature, wave in zip(found, waves, strict=True))
        return found

    monkeypatch.setattr(module.LengthAwareFeaturizer, "forward", spy)
    return pairs


def stored(path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)  # Namespace is allowed by then


def stored_rate(path) -> RateOptions:
    return RateOptions.layered(read_model_config(stored(path)["Args"].upstream_model_config))


def test_a_finished_training_has_nothing_to_measure(command, caplog):
    """Run again it succeeds, and logs no frame period."""
    assert command("-a", "-m", "train", "-d", "sid", "-p", "exp") == 0
    assert "measured frame period: 20" in caplog.text
    caplog.clear()
    assert command("-a", "-m", "train", "-d", "sid", "-p", "exp") == 0
    assert "measured frame period" not in caplog.text


@pytest.mark.parametrize("task", ["asr", "pr", "sid"])
def test_train_and_evaluate_on_native_frames(task, command, capfd, caplog, seen_frames):
    """A task trains and evaluates on compressed frames by default, and the rate is the experiment's own."""
    assert command("-m", "train", "-d", task, "-p", "exp", "--lambd", "0.5") == 0
    assert 0.3 < sum(found for found, _ in seen_frames) / sum(whole for _, whole in seen_frames) < 0.9
    assert stored_rate("exp/states-2.ckpt") == RateOptions(lambd=0.5, output_frames="native")
    assert "measured frame period" in caplog.text
    capfd.readouterr(), caplog.clear(), seen_frames.clear()

    assert command("-m", "evaluate", "-e", "exp", "-t", SPLIT[task]) == 0
    assert "lambd 0.5, native frames" in caplog.text and "trained at" not in caplog.text
    assert len(seen_frames) == 2 and all(found < whole for found, whole in seen_frames)
    assert {"asr": "wer", "pr": "per", "sid": "acc"}[task] in capfd.readouterr().out


@pytest.mark.parametrize("task", ["asr", "pr", "sid"])
def test_train_on_upsampled_frames(task, command, seen_frames):
    """With upsampled frames the downstream model gets one frame every 20 ms, as of a plain wav2vec 2.0."""
    assert command("-m", "train", "-d", task, "-p", "exp", "--lambd", "0.5", "--output-frames", "upsampled") == 0
    assert seen_frames and all(found == whole for found, whole in seen_frames)
    assert stored_rate("exp/states-2.ckpt") == RateOptions(lambd=0.5, output_frames="upsampled")


def test_the_check_for_ctc_uses_the_cache(command, monkeypatch):
    """Counting the frames of the training utterances leaves their front ends in the feature cache, where the training
    finds them, and the check of another one at another rate."""
    convolved, forward = [], FrontEnd.forward
    monkeypatch.setattr(FrontEnd, "forward", lambda *args: (convolved.extend(map(len, args[1])), forward(*args))[1])
    for lambd, expected in (("0.5", 1 + 6 + 2), ("0.4", 1)):  # noise, with which S3PRL learns the width; training; dev
        convolved.clear()
        options = ("--lambd", lambd, "--cache-gb", "0.1", "--feature-cache", "features")
        assert command("-m", "train", "-d", "pr", "-p", f"exp{lambd}", *options) == 0
        assert len(convolved) == expected


def test_the_check_for_ctc_keeps_hidden_states(command):
    """Where the cache has less room than the last time, the check deletes front ends, and not the hidden states that
    training is about to read."""
    cache = ("--lambd", "0.5", "--feature-cache", "features", "--cache-gb")
    assert command("-m", "train", "-d", "pr", "-p", "exp", *cache, "0.1") == 0
    (key,) = (path for path in pathlib.Path("features").glob("*/key.json") if "rate" in json.loads(path.read_text()))
    size = on_disk(key.parent)
    assert command("-m", "train", "-d", "pr", "-p", "again", *cache, f"{size / 10**9}") == 0
    assert on_disk(key.parent) == size == on_disk("features") > 0


def test_the_users_config_in_the_experiments_folder_stays(command, capsys):
    """A config that the user keeps under the name of the experiment's own is not replaced by what it resolves to."""
    pathlib.Path("exp").mkdir()
    text = (ROOT / "downstream_configs" / "pr_mini.yaml").read_text()
    pathlib.Path("exp/config.yaml").write_text(f"# by hand\n{text}")
    assert command("-m", "train", "-d", "pr", "-p", "exp", "-c", "exp/config.yaml") == 2
    assert "-c exp/config.yaml is where the experiment keeps its own config" in capsys.readouterr().err
    assert pathlib.Path("exp/config.yaml").read_text() == f"# by hand\n{text}"


def test_evaluate_at_another_rate_and_say_so(command, caplog, seen_frames):
    """A rate given at evaluation is used in place of the trained one, and that is one line of the log."""
    command("-m", "train", "-d", "pr", "-p", "exp", "--lambd", "0.5")
    caplog.clear(), seen_frames.clear()
    assert command("-m", "evaluate", "-e", "exp", "--frame-period-ms", "40") == 0
    logged = [record.getMessage() for record in caplog.records if "trained at" in record.getMessage()]
    assert logged == [
        "the experiment was trained at lambd 0.5, native frames; it now runs at frame period 40 ms, native frames"
    ]
    for found, whole in seen_frames:
        assert abs(found - (whole * 320 + 80) / 640) <= 1
    assert stored_rate("exp/states-2.ckpt").lambd == 0.5  # the experiment keeps its own


def test_resume_at_the_trained_rate(command, caplog):
    """-e and -a resume from the last step at the stored rate, also when the command does not name it."""
    command("-m", "train", "-d", "sid", "-p", "exp", "--frame-period-ms", "50")
    caplog.clear()
    steps = "config.runner.total_steps=4"
    assert cli.main(["run_downstream", "-m", "train", "-e", "exp", "-o", steps]) == 0
    assert stored("exp/states-4.ckpt")["Step"] == 4
    assert command("-m", "train", "-d", "sid", "-p", "exp", "-a", "--frame-period-ms", "50", steps=6) == 0
    assert stored("exp/states-6.ckpt")["Step"] == 6
    assert "trained at" not in caplog.text
    assert stored_rate("exp/states-6.ckpt") == RateOptions(frame_period_ms=50.0, output_frames="native")


def test_weights_alone_keep_their_rate(command, caplog):
    """-i loads only weights; without a rate on the command line theirs is used, not lambd 0."""
    command("-m", "train", "-d", "sid", "-p", "exp", "--lambd", "0.8")
    caplog.clear()
    assert command("-m", "evaluate", "-d", "sid", "-p", "other", "-i", "exp/states-2.ckpt") == 0
    assert "runs at lambd 0.8, native frames" in caplog.text


def test_evaluate_from_another_folder(command, tmp_path, monkeypatch, caplog):
    """The checkpoint of the upstream is found from another folder, although it was given by a relative path."""
    (tmp_path / "model.pt").write_bytes(pathlib.Path(CKPT).read_bytes())
    relative = ("-u", "ofa_wav2vec2_local", "-k", "model.pt")
    assert command("-m", "train", "-d", "sid", "-p", str(tmp_path / "exp"), upstream=relative) == 0
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command("-m", "evaluate", "-e", str(tmp_path / "exp")) == 0


def test_fine_tuning_trains_and_keeps_the_upstream(command):
    """-f changes the upstream's weights, saves them with the experiment, and evaluation loads them."""
    assert command("-m", "train", "-d", "sid", "-p", "exp", "--lambd", "0.5", "-f") == 0
    weights = stored("exp/states-2.ckpt")["Upstream"]
    fresh = importlib.import_module("s3prl.hub").ofa_wav2vec2(CKPT).state_dict()
    assert weights.keys() == fresh.keys()
    assert all(not torch.equal(weights[name], fresh[name]) for name in fresh if name.endswith("weight"))
    assert command("-m", "evaluate", "-e", "exp") == 0


def test_inference_transcribes_a_file(command, corpora):
    """-m inference gives the text of one file."""
    command("-m", "train", "-d", "asr", "-p", "exp", "--lambd", "0.5")
    wave = next((corpora / "LibriSpeech" / "test-mini").rglob("*.flac"))
    assert command("-m", "inference", "-e", "exp", "-t", str(wave)) == 0
    assert pathlib.Path("exp/inference.ark").read_text().startswith(wave.stem)


def test_other_upstreams_run_unchanged(command, seen_frames, caplog):
    """S3PRL's own upstreams run as baselines through the same command, and take no rate."""
    fbank = ("-u", "fbank")
    assert command("-m", "train", "-d", "sid", "-p", "exp", upstream=fbank) == 0
    assert stored("exp/states-2.ckpt")["Args"].upstream_model_config is None
    assert seen_frames[0][0] > 1.9 * seen_frames[0][1]  # 10 ms per frame
    assert "measured" not in caplog.text
    for option in (("--lambd", "0.5"), ("--pool", "2"), ("--output-frames", "native"), ("--repeat", "auto")):
        assert command("-m", "train", "-d", "sid", "-p", "none", *option, upstream=fbank) == 2
        assert not pathlib.Path("none").exists()


def test_labels_that_do_not_fit_stop_the_training(command, capfd, caplog):
    """Above 1% of utterances with fewer frames than labels, nothing is trained or written; the repeat that would do is
    named, --repeat auto takes it, it is stored, and it is not asked for again at evaluation."""
    ask = ("-m", "train", "-d", "asr", "-p", "exp", "--lambd", "1.8")
    assert command(*ask) == 2
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert "6 of 6 training utterances" in message and "--repeat auto" in message
    assert not pathlib.Path("exp").exists()
    needed = int(message.split("--repeat ")[1].split()[0])
    assert needed > 1
    assert command(*ask, "--repeat", str(needed - 1)) == 2
    assert command(*ask, "--repeat", "auto") == 0
    assert stored_rate("exp/states-2.ckpt") == RateOptions(lambd=1.8, output_frames="native", repeat=needed)
    caplog.clear()
    assert command("-m", "evaluate", "-e", "exp", "-t", "test-clean", "--repeat", "auto") == 0
    assert f"each {needed} times" in caplog.text and "trained at" not in caplog.text


def test_specaug_is_scaled_to_native_frames(command):
    """SpecAug's widths are in frames: they shrink with native frames, and stay with upsampled ones and with -o."""
    widths = {}
    for name, options in {"native": (), "upsampled": ("--output-frames", "upsampled")}.items():
        assert command("-m", "train", "-d", "asr", "-p", name, "--frame-period-ms", "40", *options) == 0
        widths[name] = stored(f"{name}/states-2.ckpt")["Config"]["specaug"]["time_mask_width_range"][1]
        # what is kept for another run is in frames of 20 ms, so that it is not scaled twice
        kept = yaml.safe_load(pathlib.Path(name, "config.yaml").read_text())["specaug"]["time_mask_width_range"][1]
        assert kept == 40
    assert widths["upsampled"] == 40 and 19 <= widths["native"] <= 22


def test_the_stored_config_runs_again(command):
    """The config with its data roots filled in is in the experiment's folder, and -c takes it."""
    command("-m", "train", "-d", "pr", "-p", "exp", "--lambd", "0.5")
    again = ["-m", "train", "-d", "ctc", "-c", "exp/config.yaml", "-p", "again", "--lambd", "0.5"]
    assert cli.main(["run_downstream", *again, "-u", "ofa_wav2vec2", "-k", CKPT]) == 0
    configs = [stored(f"{name}/states-2.ckpt")["Config"] for name in ("exp", "again")]
    assert configs[0] == configs[1]


def test_model_config_file_and_command_line(command, tmp_path):
    """-g gives the rate as in plain S3PRL, with native frames by default here; our options win over it."""
    (tmp_path / "rate.yaml").write_text("lambd: 0.3\nrepeat: 2\n")
    assert command("-m", "train", "-d", "sid", "-p", "file", "-g", "rate.yaml") == 0
    assert stored_rate("file/states-2.ckpt") == RateOptions(lambd=0.3, output_frames="native", repeat=2)
    assert command("-m", "train", "-d", "sid", "-p", "both", "-g", "{lambd: 0.3}", "--lambd", "0.6") == 0
    assert stored_rate("both/states-2.ckpt") == RateOptions(lambd=0.6, output_frames="native")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("-m", "train", "-d", "sid"), "-n NAME"),
        (("-m", "train", "-p", "exp"), "-d asr, pr, sid"),
        (("-m", "train", "-d", "nosuch", "-p", "exp"), "nosuch"),
        (("-m", "train", "-d", "sid", "-p", "exp", "-u", "nosuch"), "nosuch"),
        (("-m", "train", "-d", "sid", "-p", "exp", "-k", "nosuch.pt"), "nosuch.pt"),
        (("-m", "train", "-d", "sid", "-p", "exp", "-k", __file__), "test_end_to_end.py"),
        (("-m", "train", "-d", "sid", "-p", "exp", "--lambd", "2"), "[0, 2)"),
        (
            ("-m", "train", "-d", "sid", "-p", "exp", "--lambd", "half"),
            "or adaptive, found 'half'",
        ),
        (("-m", "train", "-d", "sid", "-p", "exp", "--lambd", "0.5", "--frame-period-ms", "40"), "--lambd"),
        (("-m", "train", "-d", "sid", "-p", "exp", "--frame-period-ms", "10"), "20"),
        (("-m", "train", "-d", "sid", "-p", "exp", "--repeat", "0"), "repeat"),
        (("-m", "train", "-d", "sid", "-p", "exp", "--repeat", "some"), "whole number or auto"),
        (("-m", "train", "-d", "sid", "-p", "exp", "--repeat", "2", "--output-frames", "upsampled"), "native"),
        (("-m", "train", "-d", "sid", "-p", "exp", "--output-frames", "native", "--frames", "upsampled"), "old name"),
        (("-m", "train", "-d", "sid", "-p", "exp", "-g", "0.5"), "model_config"),
        (("-m", "train", "-d", "sid", "-p", "exp", "-c", "nosuch.yaml"), "nosuch.yaml"),
        (("-m", "evaluate", "-d", "sid", "-p", "exp", "-i", "nosuch.ckpt"), "nosuch.ckpt"),
        (("-m", "evaluate", "-e", "nosuch"), "nosuch"),
        (("-m", "train", "-d", "sid", "-p", __file__), "test_end_to_end.py: this folder cannot be made"),
        (("-m", "train", "-d", "sid", "-p", f"{__file__}/exp"), "exp: this folder cannot be made"),
        (("-d", "sid", "-p", "exp"), "-m"),
        (("-m", "train", "-d", "sid", "-n", "name", "--device", "abacus"), "device abacus is unknown"),
    ],
)
def test_bad_use_is_one_sentence_and_leaves_nothing(options, words, command, capfd):
    """Bad use: exit status 2, what was found and expected, and no experiment folder."""
    upstream = ("-u", "ofa_wav2vec2", "-k", CKPT)
    if "-k" in options or "-u" in options:
        upstream = upstream[:2] if "-k" in options else upstream[2:]
    assert command(*options, upstream=upstream) == 2
    message = capfd.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("s3prl-ofa run_downstream: error: ") and words in message
    assert not list(pathlib.Path().iterdir())


@pytest.mark.parametrize("override", ["x", "runner.total_steps=2", "config.a=b=c", "args.a.b=1", "config.a=1,,"])
def test_an_override_that_s3prl_cannot_read(override, capfd, tmp_path):
    """-o of another form is refused with the expected form; S3PRL would fail on it or ignore it."""
    command = ["-m", "train", "-d", "sid", "-p", str(tmp_path / "exp"), "-u", "fbank", "-o", override]
    assert cli.main(["run_downstream", *command]) == 2
    assert "config.NAME.NAME=VALUE" in capfd.readouterr().err
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(("key", "value"), [("model.select", "Nosuch"), ("model.project_dim", "many")])
def test_a_config_that_s3prl_cannot_use(key, value, command, capfd):
    """S3PRL's error becomes a sentence that names the part of the config."""
    steps = f"2,,config.downstream_expert.{key}={value}"
    assert command("-m", "train", "-d", "pr", "-p", "exp", steps=steps) == 2
    assert "S3PRL cannot make this task from the config's downstream_expert (" in capfd.readouterr().err


def test_no_upstream_and_no_checkpoint(command, capfd):
    """Leaving out -u or -k is bad use too."""
    for upstream, words in (((), "-u ofa_wav2vec2"), (("-u", "ofa_wav2vec2"), "-k FILE")):
        assert command("-m", "train", "-d", "sid", "-p", "exp", upstream=upstream) == 2
        assert words in capfd.readouterr().err


def test_nothing_of_s3prl_or_python_stays_changed(command, corpora):
    """After a run, also a failed one, the builtins and S3PRL's modules are what they were; the result is returned."""
    import builtins

    runner, model = map(importlib.import_module, ("s3prl.downstream.runner", "s3prl.downstream.asr.model"))

    def names():
        return builtins.isinstance, builtins.eval, torch.load, model.nn, dict(vars(runner))

    before = names()
    assert command("-m", "train", "-d", "sid", "-p", "bad", "--lambd", "2") == 2
    options = ["-m", "train", "-d", "sid", "-p", "exp", "-u", "ofa_wav2vec2", "-k", CKPT, "--lambd", "1", "--mini"]
    options += ["--voxceleb1", str(corpora / "VoxCeleb1"), "--prepared", str(corpora / "prepared")]
    arguments = cli.build_command_parser("run_downstream").parse_args([*options, "-o", STEPS.format(1)])
    measured = run_downstream(*divide(arguments))
    assert names() == before
    assert measured.utterances == 2 * len(SPEAKERS) and 20 < measured.frame_period_ms < 200


def test_without_cuda_the_cpu_is_used(command, caplog, monkeypatch):
    """S3PRL's default device is cuda: without a GPU the CPU is used, and one line says so."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command("-m", "train", "-d", "sid", "-p", "exp") == 0
    assert "--device cuda becomes cpu" in caplog.text


def test_the_cpu_can_be_chosen_beside_a_gpu(command, monkeypatch):
    """--device cpu trains and evaluates beside a GPU too: S3PRL's runner would select "cpu" as a CUDA device."""
    runner = importlib.import_module("s3prl.downstream.runner")
    monkeypatch.setattr(runner, "torch", torch)  # put back at the end
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    # A torch built for CUDA would ask the card, which is not there, whether its work is being recorded.
    for check in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
        monkeypatch.setattr(torch.optim.Optimizer, check, lambda optimizer: None, raising=False)
    shims.cpu_beside_cuda(runner)
    assert command("-m", "train", "-d", "sid", "-p", "exp", "--device", "cpu") == 0
    assert command("-m", "evaluate", "-e", "exp", "--device", "cpu") == 0


def test_quiet(command, capfd):
    """With --quiet a training ends as it does without; stdout has only the scores, stderr only an error."""
    assert command("-m", "train", "-d", "sid", "-p", "exp", "--quiet") == 0
    assert pathlib.Path("exp", "states-2.ckpt").exists()
    said = capfd.readouterr()
    assert said.err == "" and re.fullmatch(r"((train|dev) acc: [\d.]+\n)+", said.out)
    assert command("-m", "evaluate", "-e", "none", "--quiet") == 2
    assert capfd.readouterr().err.startswith("s3prl-ofa run_downstream: error: -e none: ")


def test_help_shows_both_sets_of_options(capsys):
    """--help lists S3PRL's options and ours."""
    with pytest.raises(SystemExit) as stop:
        cli.main(["run_downstream", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--frame-period-ms", "--repeat", "--past_exp", "--upstream_trainable"))


def test_unreachable_periods_are_logged_once(command, caplog):
    """A period that lambd 1 does not reach is logged once, not once per batch."""
    with caplog.at_level(logging.WARNING):
        assert command("-m", "train", "-d", "sid", "-p", "exp", "--frame-period-ms", "300") == 0
    assert sum("longer than lambd 1 gives" in record.getMessage() for record in caplog.records) == 1
