"""``run_downstream --lambd adaptive`` through S3PRL's own runner, on the bundled speech and the bundled checkpoint."""

import json

import pytest
import torch
from paths import CKPT, DEMO
from superb_corpora import make_librispeech

from s3prl_ofa import cli
from s3prl_ofa.superb.upstream.expert import UpstreamExpert

SID = ["-d", "sid", "--mini", "--voxceleb1", str(DEMO / "audio")]
EVERY = {"total_steps": 12, "eval_step": 100, "save_step": 4, "log_step": 6, "max_keep": 9}
DATARC = "config.downstream_expert.datarc"
SMALL = (f"{DATARC}.train_batch_size=2", f"{DATARC}.max_timestep=16000")
LR = 5e-3  # of sid_mini.yaml
WEIGHT = 3.0


def train(folder, *options, overrides=(), weight=WEIGHT) -> int:
    changes = ",,".join([*(f"config.runner.{name}={value}" for name, value in EVERY.items()), *SMALL, *overrides])
    rate = ["--lambd", "adaptive", "--rate-weight", str(weight)]
    command = ["run_downstream", "-a", "-m", "train", "-u", "ofa_wav2vec2", "-k", CKPT, *SID, "-p", str(folder)]
    return cli.main([*command, *rate, "-o", changes, *options])


def stored(path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def lambd_in(path) -> float:
    return float((1 + torch.sin(2 * stored(path)["Rate"]["raw"].double())) / 2)


def assert_same_training(one, other) -> None:
    """Two checkpoints hold the same weights and optimizer state, bit for bit."""
    for part in ("Featurizer", "Rate", "Downstream", "Optimizer"):
        torch.testing.assert_close(one[part], other[part], rtol=0, atol=0)


def measured(folder, split) -> dict:
    return json.loads((folder / f"measured_{split}.json").read_text())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished training with a price on frames, and what its upstream was before and after: (folder, states)."""
    from s3prl.downstream.runner import Runner

    states, own_train = [], Runner.train

    def recording_train(runner):
        upstream = runner.upstream.model
        states.append({name: value.clone() for name, value in upstream.state_dict().items()})
        own_train(runner)
        states.append({name: value.clone() for name, value in upstream.state_dict().items()})
        assert not any(module.training for module in upstream.modules())
        assert all(parameter.grad is None for parameter in upstream.parameters())

    folder = tmp_path_factory.mktemp("adaptive") / "exp"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "train", recording_train)
        assert train(folder) == 0
    return folder, states


def test_only_the_rate_is_trained(trained):
    """After training by S3PRL's own loop the upstream is what it was, bit for bit, in evaluation mode and without
    gradients, while the rate moved with the weights of the layers."""
    folder, (before, after) = trained
    assert before.keys() == after.keys() and all(torch.equal(value, after[name]) for name, value in before.items())
    first, last = (stored(folder / f"states-{step}.ckpt") for step in (4, 12))
    for part, name in (("Featurizer", "weights"), ("Rate", "raw")):
        assert not torch.equal(first[part][name], last[part][name])


def test_the_weight_decides_where_it_goes(trained, tmp_path):
    """A price on frames raises lambd, by about the learning rate a step, from the middle and from near 1; without one
    the task's loss alone moves it, elsewhere."""
    folder, _ = trained
    assert 0.5 + 0.6 * EVERY["total_steps"] * LR < lambd_in(folder / "states-12.ckpt") < 0.5 + 12.5 * LR
    assert train(tmp_path / "free", weight=0) == 0
    free = lambd_in(tmp_path / "free" / "states-12.ckpt")
    assert free != 0.5 and free < lambd_in(folder / "states-12.ckpt") - LR
    assert train(tmp_path / "late", "--lambd-start", "0.95", "-s", "last_hidden_state") == 0
    assert "weights" not in stored(tmp_path / "late" / "states-12.ckpt")["Featurizer"]
    assert 0.95 < lambd_in(tmp_path / "late" / "states-12.ckpt") <= 1


def test_it_is_reported(trained):
    """The learnt lambd and the period that it gives are in the measured file and TensorBoard's."""
    folder, _ = trained
    found = measured(folder, "train")
    assert found["learnt_lambd"] == lambd_in(folder / "states-12.ckpt")
    assert 22 < found["frame_period_ms"] < 60
    (events,) = folder.glob("events.out.tfevents.*")
    assert b"voxceleb1/train-lambd" in events.read_bytes() and b"train-frame_period_ms" in events.read_bytes()


def test_interrupted_and_the_same(trained, tmp_path, monkeypatch):
    """Killed in the middle of a save and resumed, rate and weights end as without, bit for bit."""
    folder, _ = trained
    save = torch.save

    def killed(states, file, *args):
        if states["Step"] == 8:
            raise KeyboardInterrupt
        save(states, file, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", killed)
        assert train(tmp_path / "cut") == 130
    assert lambd_in(tmp_path / "cut" / "states-4.ckpt") == lambd_in(folder / "states-4.ckpt")
    assert train(tmp_path / "cut") == 0
    assert_same_training(stored(folder / "states-12.ckpt"), stored(tmp_path / "cut" / "states-12.ckpt"))


def test_a_rate_in_the_featurizers_state_is_found(trained, tmp_path):
    """An experiment of an earlier version, which kept the rate with the featurizer's weights, resumes to the same bits
    and is evaluated at its rate and at others."""
    folder, _ = trained
    states = stored(folder / "states-4.ckpt")
    states["Featurizer"] |= {f"rate.{name}": value for name, value in states.pop("Rate").items()}
    (tmp_path / "old").mkdir()
    torch.save(states, tmp_path / "old" / "states-4.ckpt")
    for options, lambd in (([], lambd_in(folder / "states-4.ckpt")), (["--lambd", "0.2"], None)):
        assert cli.main(["run_downstream", "-m", "evaluate", "-e", str(tmp_path / "old"), *options]) == 0
        assert measured(tmp_path / "old", "test")["learnt_lambd"] == lambd
    assert train(tmp_path / "old") == 0
    assert_same_training(stored(folder / "states-12.ckpt"), stored(tmp_path / "old" / "states-12.ckpt"))


def test_evaluated_at_the_learnt_rate(trained, caplog):
    """Evaluation runs at the lambd in the checkpoint, says it, and gives the same twice and as that number would."""
    folder, _ = trained
    caplog.set_level("INFO")
    results = []
    for options in ([], [], ["--lambd", f"{lambd_in(folder / 'states-12.ckpt'):.17g}"], ["--lambd", "0"]):
        assert cli.main(["run_downstream", "-m", "evaluate", "-e", str(folder), *options]) == 0
        results.append(measured(folder, "test"))
    learnt = results[0]["learnt_lambd"]
    assert learnt == lambd_in(folder / "states-12.ckpt") and f"lambd {learnt:.4f}, fixed, as learnt" in caplog.text
    assert results[0]["scores"] == results[1]["scores"] == results[2]["scores"]
    assert results[0]["frames"] == results[1]["frames"] == results[2]["frames"] < results[3]["frames"]
    assert results[2]["learnt_lambd"] is None and results[3]["frame_period_ms"] == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("train", ["--lambd", "0.5"], ["trains its rate", "lambd 0.5"]),
        ("train", ["--lambd-start", "0.2"], ["lambd_start", "0.5"]),
        ("evaluate", ["--lambd-max", "0.9"], ["lambd_max", "new training", "it is 1"]),
        ("evaluate", ["--rate-weight", "-1"], ["rate_weight", "-1"]),
    ],
)
def test_what_an_adaptive_experiment_cannot_do(trained, mode, options, words, capfd):
    """Resuming at another kind of rate or from another start is refused in one sentence."""
    assert cli.main(["run_downstream", "-m", mode, "-e", str(trained[0]), *options]) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert all(word in said for word in words), said


def test_a_fixed_experiment_has_no_rate_to_evaluate(tmp_path, capfd):
    """An experiment at a given rate has learned none."""
    assert train(tmp_path / "exp", "-g", "{lambd: 0.3}", "--lambd", "0.4") == 2  # and the weight has no rate then
    steps = "config.runner.total_steps=1,,config.runner.save_step=1,," + ",,".join(SMALL)
    ask = ["run_downstream", "-m", "train", "-u", "ofa_wav2vec2", "-k", CKPT, *SID, "-p", str(tmp_path / "exp")]
    assert cli.main([*ask, "--lambd", "0.4", "-o", steps]) == 0
    for options in (["-m", "evaluate"], ["-m", "train"]):
        assert cli.main(["run_downstream", *options, "-e", str(tmp_path / "exp"), "--lambd", "adaptive"]) == 2
        assert "trained at lambd 0.4" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--rate-weight", "0.1"], ["rate_weight", "adaptive"]),
        (["--lambd", "0.5", "--rate-weight", "0.1"], ["rate_weight", "adaptive"]),
        (["--lambd", "adaptive", "--rate-weight", "nan"], ["rate_weight", "nan"]),
        (["--lambd", "adaptive", "--lambd-start", "1.5"], ["lambd_start", "[0, 1]", "1.5"]),
        (["--lambd", "adaptive", "--pool", "2"], ["--pool", "--lambd"]),
        (["--lambd", "adapted"], ["lambd", "adaptive", "adapted"]),
        (["--lambd", "adaptive", "-f"], ["lambd adaptive", "leave out -f"]),
        (["--lambd", "adaptive", "-u", "mfcc"], ["--lambd", "ofa_wav2vec2", "mfcc"]),
    ],
)
def test_bad_use(options, words, tmp_path, capfd):
    """Exit status 2, one sentence, nothing written."""
    ask = ["run_downstream", "-m", "train", "-u", "ofa_wav2vec2", "-k", CKPT, *SID, "-p", str(tmp_path / "exp")]
    assert cli.main([*ask, *options]) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert all(word in said for word in words), said
    assert not (tmp_path / "exp").exists()


def test_a_checkpoint_without_a_compressor(tmp_path, capfd):
    """A plain wav2vec 2.0 has no rate to learn."""
    import dataclasses

    from models import GOLDEN_CONFIG, random_model

    plain = random_model(dataclasses.replace(GOLDEN_CONFIG, compressor="none"))
    plain.save(tmp_path / "plain.safetensors")
    ask = ["run_downstream", "-m", "train", "-u", "ofa_wav2vec2", "-k", str(tmp_path / "plain.safetensors"), *SID]
    assert cli.main([*ask, "-p", str(tmp_path / "exp"), "--lambd", "adaptive"]) == 2
    assert "no compressor" in capfd.readouterr().err


def test_ctc_is_checked_where_the_rate_may_come_to(tmp_path, capfd, caplog):
    """Labels that fit at the start but not at lambd 1 stop the training; --repeat auto finds what is needed there, and
    with the --lambd-max that is named frames are enough without it, but not far beyond."""
    make_librispeech(tmp_path)
    for path in tmp_path.glob("LibriSpeech/train-mini/*/*/*.trans.txt"):
        lines = [line.split(" ", 1) for line in path.read_text().splitlines()]
        path.write_text("".join(f"{name} {' '.join([text] * 5)}\n" for name, text in lines))
    data = ["--librispeech", str(tmp_path / "LibriSpeech"), "--prepared", str(tmp_path / "prepared"), "--mini"]
    steps = "config.runner.total_steps=1,,config.runner.save_step=1,,config.runner.eval_step=2"
    ask = ["run_downstream", "-m", "train", "-u", "ofa_wav2vec2", "-k", CKPT, "-d", "asr", *data, "-o", steps]
    ask += ["-p", str(tmp_path / "exp"), "--lambd", "adaptive", "--lambd-start", "0.1"]
    assert cli.main(ask) == 2
    said = capfd.readouterr().err.strip().splitlines()[-1]
    assert said.count("at lambd 1, which an adaptive rate may reach") == 1 and "--repeat 2 would do" in said
    limit = float(said.split("so would --lambd-max ")[1])
    assert 0.1 < limit < 1
    assert cli.main([*ask, "--lambd-max", f"{min(1.0, limit + 0.15):g}"]) == 2
    assert not (tmp_path / "exp").exists()
    capfd.readouterr()
    given = [*ask[: ask.index("--lambd")], "--lambd", "1"]
    assert cli.main(given) == 2
    assert f"--repeat 2 would do, --repeat auto chooses it; so would --lambd {limit:g}" in capfd.readouterr().err
    caplog.set_level("INFO")
    assert cli.main([*ask, "-p", str(tmp_path / "limited"), "--lambd-max", f"{limit:g}"]) == 0
    options = UpstreamExpert(CKPT, stored(tmp_path / "limited" / "states-1.ckpt")["Args"].upstream_model_config).options
    assert (options.repeat, options.lambd_max) == (1, limit)
    caplog.clear()
    assert cli.main([*ask, "--repeat", "auto"]) == 0
    assert "CTC needs each frame 2 times" in caplog.text
    config = stored(tmp_path / "exp" / "states-1.ckpt")["Args"].upstream_model_config
    assert UpstreamExpert(CKPT, config).options.repeat == 2
    # SpecAug's widths follow the period at the start, twice as many frames as there are of about 22 ms
    period = float(caplog.text.split("scaled from 20 ms to ")[1].split()[0])
    assert 10 < period < 12
