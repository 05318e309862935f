"""``s3prl-ofa pretrain`` in one process: configurations, logs, messages for bad use."""

import json
import os
import re
import subprocess
import sys

import pytest
from pretraining import corpus_settings, make_corpus, read_checkpoint, run_here, start, write_config

from s3prl_ofa.checkpoint import load
from s3prl_ofa.guidance.layout import guidance_path


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """In a folder whose name has characters with a meaning in hydra."""
    return make_corpus(tmp_path_factory.mktemp("corpus") / "a, b (c) = {d} it's", train=6)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out, (1)=x"


def logged(out) -> dict[str, dict]:
    """The last logged statistics of ``train`` and ``valid``."""
    found = {}
    for kind, line in re.findall(r"\[(train|valid)\]\[INFO\] - (\{.*\})", (out / "hydra_train.log").read_text()):
        found[kind] = json.loads(line)
    return found


def test_a_training_and_what_it_logs(corpus, out, tmp_path, capfd):
    """Losses and rates are logged by name, those of validation at lambd 0, 0.5 and 1 each, with the frame
    period; TensorBoard has them; the last line gives the checkpoint."""
    config = write_config(tmp_path / "tiny.yaml", model={"card_loss": 0.1, "lambd_per": "utterance"})
    assert run_here(["--config", config, *corpus_settings(corpus, out)]) == 0
    stats = logged(out)
    names = {"loss", "accuracy", "frame_period_ms", "alpha", "code_perplexity", "prob_perplexity", "temp"}
    losses = {f"loss_{name}" for name in ("infonce", "diversity", "features_pen", "card", "seg", "frame")}
    for name in names | losses | {"lambd", "hours_left", "hours_per_hour"}:
        assert float(stats["train"][f"train_{name}"]) >= 0, name
    assert not [name for name in stats["train"] if re.search(r"loss_\d|_numerator|_denominator|_sum|_parts", name)]
    for lambd, low, high in (("0", 20, 21), ("0.5", 22, 40), ("1", 23, 90)):
        for name in (names - {"loss"}) | losses:
            assert f"valid_{name}_lambd{lambd}" in stats["valid"], name
        assert low <= float(stats["valid"][f"valid_frame_period_ms_lambd{lambd}"]) < high
        assert float(stats["valid"][f"valid_lambd_lambd{lambd}"]) == float(lambd)
    assert list((out / "tensorboard").rglob("events*"))
    last = capfd.readouterr().out.strip().splitlines()[-2:]
    path = out / "checkpoints" / "checkpoint_last.pt"
    assert last[0] == f"trained: {path}" and path.is_file()
    assert last[1].startswith("features from it: s3prl-ofa extract")


def test_the_references_own_configuration(corpus, out, tmp_path, capfd):
    """A configuration of the reference trains, given in the same way as to fairseq-hydra-train, with the
    overrides of its command; with --quiet only hydra_train.log says how far it is."""
    reference = {
        "common": {"fp16": True, "log_interval": 200},
        "checkpoint": {"save_interval_updates": 25_000, "keep_interval_updates": 1, "no_epoch_checkpoints": True},
        "task": {"alpha_root": None, "boundaries_root": None},
        "distributed_training": {"distributed_world_size": 1, "ddp_backend": "legacy_ddp"},
        "criterion": {"log_keys": ["prob_perplexity", "code_perplexity", "temp"]},
        "model": {
            "fixed_subsample_ratio": 4,
            "card_loss": 0.0,
            "target_ratio": 0.25,
            "seg_loss": 0.05,
            "frame_loss": 0.5,
            "mixup_distro": "both",
            "upper_lambd": 1.6,
        },
    }
    write_config(tmp_path / "config" / "theirs.yaml", **reference)
    roots = {kind: corpus / "guidance" / kind for kind in ("alpha", "boundaries")}
    overrides = [f"+task.{kind}_root='{str(root).replace(chr(39), chr(92) + chr(39))}'" for kind, root in roots.items()]
    arguments = ["--config-dir", tmp_path / "config", "--config-name", "theirs", f"data={corpus / 'data'}"]
    assert run_here([*arguments, f"out={out}", *overrides, "common.fp16=false", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")
    assert float(logged(out)["train"]["train_loss_seg"]) > 0
    saved = read_checkpoint(out / "checkpoints" / "checkpoint_last.pt")["cfg"]
    assert saved["task"]["alpha_root"] == str(roots["alpha"]) and saved["model"]["upper_lambd"] == 1.6


BFLOAT16 = {"task": {"cpu_bfloat16": True}}


@pytest.mark.parametrize(
    ("model", "others", "period"),
    [
        ({"subsample": "none", "mixup": None, "seg_loss": None, "frame_loss": None}, {}, 20),
        ({"subsample": "fixed", "fixed_subsample_ratio": 3}, {"task": {"enable_padding": True}}, 60),
        ({"mixup_distro": "scale", "extractor_mode": "layer_norm", "layer_norm_first": True}, BFLOAT16, 30),
        ({"mixup": False}, {"task": {"enable_padding": True}, "dataset": {"batch_size": 4, "num_workers": 1}}, 25),
    ],
    ids=["none", "fixed padded", "scale layer_norm", "lambd 1 padded"],
)
def test_other_ways_to_train(corpus, out, tmp_path, model, others, period):
    """Without compression, with average pooling, at any distribution, cropped and padded: all train."""
    losses = {"criterion": {"loss_weights": [0.1, 10]}}  # two are enough for all
    config = write_config(tmp_path / "tiny.yaml", model=model, **losses, **others)
    assert run_here(["--config", config, *corpus_settings(corpus, out)]) == 0
    stats = logged(out)["train"]
    assert float(stats["train_loss"]) > 0
    found = float(stats["train_frame_period_ms"])
    assert found > period if model.get("mixup_distro") or "mixup" in model and model["mixup"] is False else True
    if model.get("subsample"):
        assert found == pytest.approx(period, rel=0.05)
        trained = load(out / "checkpoints" / "checkpoint_last.pt")  # runs at the period it was trained at
        assert trained.config.frame_period_ms == period and trained.compressor is None


def error_of(capfd, arguments, status: int) -> str:
    """The single line on stderr with which the command fails."""
    capfd.readouterr()
    assert run_here(arguments) == status
    error = capfd.readouterr().err
    lines = [line for line in error.splitlines() if not re.match(r"\[20\d\d-.*\]\[INFO\]", line)]
    assert len(lines) == 1, error
    assert lines[0].startswith("s3prl-ofa pretrain: error: ") and len(lines[0]) < 600
    return lines[0]


def test_no_manifest(corpus, out, tmp_path, capfd):
    """A folder of data without manifests is named."""
    config = write_config(tmp_path / "tiny.yaml")
    error = error_of(capfd, ["--config", config, f"data={corpus}", f"out={out}"], 2)
    assert re.search(rf"{re.escape(str(corpus))}/(train|valid).tsv: cannot be read", error)


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_guidance_in_a_training(corpus, out, tmp_path, capfd, workers):
    """The file is named in one line, also if a data worker read it; with skip training continues."""
    guidance = tmp_path / "guidance"
    subprocess.run(["cp", "-r", corpus / "guidance", guidance], check=True)
    path = guidance_path(guidance / "alpha", "train/v1.2/utterance2.flac")
    path.write_bytes(b"half a f")
    config = write_config(tmp_path / "tiny.yaml", optimization={"max_update": 3}, dataset={"num_workers": workers})
    arguments = ["--config", config, f"data={corpus / 'data'}", f"guidance={guidance}", f"out={out}"]
    assert f"error: {path}: damaged" in error_of(capfd, arguments, 1)
    assert run_here([*arguments, "task.bad_guidance=skip"]) == 0
    assert f"{path}: damaged" in capfd.readouterr().err + (out / "hydra_train.log").read_text()


@pytest.mark.slow
def test_fairseqs_own_command(corpus, tmp_path):
    """``fairseq-hydra-train`` with common.user_dir trains under the plugin's names."""
    import s3prl_ofa

    folder = os.path.join(os.path.dirname(s3prl_ofa.__file__), "pretrain")
    write_config(
        tmp_path / "tiny.yaml",
        common={"user_dir": folder},
        task={"_name": "ofa_audio_pretraining", "data": str(corpus / "data")},
        model={"_name": "ofa_wav2vec2"},
        criterion={"_name": "ofa_wav2vec"},
        checkpoint={"save_dir": str(tmp_path / "checkpoints")},
    )
    arguments = ["--config-dir", tmp_path, "--config-name", "tiny", f"hydra.run.dir={tmp_path / 'run'}"]
    log = tmp_path / "log"
    assert start(arguments, log, ["fairseq_cli.hydra_train"]).wait(600) == 0, log.read_text()[-3000:]
    saved = read_checkpoint(tmp_path / "checkpoints" / "checkpoint_last.pt")
    assert saved["cfg"]["model"]["_name"] == "ofa_wav2vec2"
    assert saved["optimizer_history"][-1]["num_updates"] == 2
    assert "train_frame_period_ms" in log.read_text()
    s3prl_ofa.load(tmp_path / "checkpoints" / "checkpoint_last.pt")


def test_without_fairseq(tmp_path):
    """Only pretraining imports fairseq, and the command says so if it is not installed."""
    code = """
import sys
import s3prl_ofa, s3prl_ofa.guidance, s3prl_ofa.guidance.command, s3prl_ofa.guidance.layout, s3prl_ofa.cli
assert not [name for name in sys.modules if name.split(".")[0] in ("fairseq", "hydra", "s3prl", "torchaudio")]
sys.modules["fairseq"] = None
sys.exit(s3prl_ofa.cli.main(["pretrain", "--config", "ofa_tiny", "data=."]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1 and "pip install 's3prl-ofa[pretrain]'" in done.stderr


@pytest.mark.parametrize("name", ["ofa_tiny", "ofa_base_librispeech"])
def test_packaged_configurations(name):
    """The packaged configurations make a model; Base has the reference's settings."""
    import yaml

    from s3prl_ofa.arguments.pretrain import CONFIGS
    from s3prl_ofa.pretrain.config import OFAModelConfig, OFATaskConfig
    from s3prl_ofa.pretrain.model import OFAPretrainingModel

    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    values = {section: {k: v for k, v in config[section].items() if k != "_name"} for section in ("model", "task")}
    OFATaskConfig(**values["task"])
    model = OFAPretrainingModel(OFAModelConfig(**values["model"] | {"encoder_layers": 1}))
    assert model.extra_loss_names == ("diversity", "features_pen", "card", "seg", "frame")
    if name == "ofa_tiny":
        return
    assert config["optimization"] == {"max_update": 5000, "lr": [0.0005], "update_freq": [64]}
    assert config["dataset"]["max_tokens"] == 1_400_000 and config["lr_scheduler"]["warmup_updates"] == 32_000
    assert config["criterion"]["loss_weights"] == [0.1, 10, 1, 1, 1]
    expected = {"seg_loss": 0.05, "frame_loss": 0.5, "feature_grad_mult": 0.1, "encoder_layerdrop": 0.05}
    expected |= {"dropout_input": 0.1, "dropout_features": 0.1, "final_dim": 256, "mixup_distro": "uniform"}
    assert {key: config["model"][key] for key in expected} == expected
