"""Fine-tuning with CTC at a fixed rate, by fairseq's trainer, on real speech."""

import collections
import csv
import json
import pathlib
import re

import pytest
import torch
import yaml
from paths import REF_TINY
from pretraining import differences, read_checkpoint, run_here, start

import s3prl_ofa.pretrain  # makes fairseq's checkpoints loadable
from s3prl_ofa import ModelConfig, OFAWav2Vec2, load
from s3prl_ofa.checkpoint import convert
from s3prl_ofa.io.audio import load_speech
from s3prl_ofa.resources import AUDIO

SPEECH = AUDIO / "dev" / "wav"  # synthetic
CONFIG = {
    "common": {"log_format": "json", "log_interval": 1, "seed": 3, "cpu": True},
    "checkpoint": {"no_epoch_checkpoints": True, "best_checkpoint_metric": "uer"},
    "task": {"_name": "ofa_audio_finetuning", "data": "???", "labels": "ltr", "normalize": False},
    "dataset": {"num_workers": 0, "batch_size": 2, "required_batch_size_multiple": 1, "validate_interval": 1},
    "criterion": {"_name": "ctc"},
    "optimization": {"max_update": 4, "lr": [0.001], "sentence_avg": True},
    "optimizer": {"_name": "adam"},
    "lr_scheduler": {"_name": "fixed"},
    "model": {
        "_name": "ofa_wav2vec_ctc",
        "apply_mask": True,
        "layerdrop": 0.3,
        "dropout": 0.1,
        "mask_prob": 0.3,
        "mask_length": 2,
        "feature_grad_mult": 0.0,
    },
}


def write_data(folder: pathlib.Path, root: pathlib.Path, rows: list[tuple[str, str]]) -> pathlib.Path:
    """Manifests, letters and their dictionary, as fairseq has them. rows: audio below ``root``, and its transcript;
    the last two are for validation."""
    folder.mkdir(exist_ok=True)
    counts: collections.Counter[str] = collections.Counter()
    for split, some in {"train": rows[:-2], "valid": rows[-2:]}.items():
        letters = [[*re.sub("[^A-Z' ]", "", text.upper()).replace(" ", "|"), "|"] for _, text in some]
        manifest = [f"{name}\t{len(load_speech(root / name))}" for name, _ in some]
        (folder / f"{split}.tsv").write_text("\n".join([str(root), *manifest]) + "\n")
        (folder / f"{split}.ltr").write_text("".join(" ".join(line) + "\n" for line in letters))
        counts.update(letter for line in letters for letter in line)
    (folder / "dict.ltr.txt").write_text("".join(f"{letter} {count}\n" for letter, count in counts.items()))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    """Six bundled utterances to train with."""
    lines = (AUDIO / "transcripts.tsv").read_text().splitlines()
    rows = [tuple(line.split("\t")) for line in lines[:8]]
    return write_data(tmp_path_factory.mktemp("ctc"), SPEECH, rows)


@pytest.fixture
def train(data, tmp_path):
    """A function (out, *settings) -> status of ``s3prl-ofa pretrain`` with CONFIG."""

    def run(out, *settings, data=data, init=REF_TINY):
        (tmp_path / "ctc.yaml").write_text(yaml.safe_dump(CONFIG))
        given = [f"data={data}", f"init={init}", f"out={out}"]
        return run_here(["--config", tmp_path / "ctc.yaml", *given, *settings])

    return run


LAST = pathlib.Path("checkpoints", "checkpoint_last.pt")


@pytest.mark.slow
def test_a_fine_tuning_at_a_rate(train, data, tmp_path):
    """It resumes bit for bit, fairseq and this package load it, and its rate is the same wherever it is used."""
    from fairseq import checkpoint_utils

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert train(whole, "model.lambd=0.5") == 0
    assert train(resumed, "model.lambd=0.5", "optimization.max_update=2") == 0
    assert read_checkpoint(resumed / LAST)["optimizer_history"][-1]["num_updates"] == 2
    assert train(resumed, "model.lambd=0.5") == 0
    state = read_checkpoint(whole / LAST)
    assert differences(read_checkpoint(resumed / LAST)["model"], state["model"]) == []
    tuned, start = load(whole / LAST), load(REF_TINY)
    before, after = (model.state_dict()["encoder.layers.0.fc1.weight"] for model in (start, tuned))
    assert not torch.equal(before, after)
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task(
        [str(whole / LAST)], arg_overrides={"data": str(data)}
    )
    wave = torch.from_numpy(load_speech(SPEECH / "id10001/dev/00001.opus"))
    encoder = model.w2v_encoder.w2v_model
    for rate in ({"lambd": 0.5}, {"frame_period_ms": 37.0}):
        encoder.overwrite_frame_period_ms = rate.get("frame_period_ms")
        expected = tuned.extract([wave], **rate).hidden_states[-1]
        with torch.no_grad():
            hidden = model.eval()(source=wave[None], padding_mask=None)["encoder_out"]
            trained = model.train()(source=wave[None], padding_mask=None)["encoder_out"]
        projected = model.w2v_encoder.proj(expected).transpose(0, 1)
        torch.testing.assert_close(hidden, projected, rtol=0, atol=1e-5)
        assert len(trained) == len(hidden)
    assert len(task.target_dictionary) == model.w2v_encoder.proj.out_features


@pytest.fixture
def letters(tmp_path, mini_librispeech) -> tuple[pathlib.Path, pathlib.Path]:
    """Data of the shortest ten utterances of real speech that CTC can align at 40 ms per frame, and one of them."""
    with (mini_librispeech / "utterances.tsv").open() as file:
        rows = sorted(csv.DictReader(file, delimiter="\t"), key=lambda row: int(row["samples"]))
    paths = (f"{row['speaker']}/{row['chapter']}/{row['utterance']}.opus" for row in rows)
    spoken = [
        (path, row["transcript"])
        for path, row in zip(paths, rows, strict=True)
        if len(row["transcript"]) < 18 * int(row["samples"]) / 16_000
    ]
    audio = mini_librispeech / "audio"
    return write_data(tmp_path / "data", audio, spoken[:10]), audio / spoken[0][0]


def assert_tuned(checkpoint, audio):
    """The encoder of a fine-tuned checkpoint gives frames of 40 ms."""
    wave = load_speech(audio)
    assert load(checkpoint).extract([wave], frame_period_ms=40).lengths.item() == round(len(wave) / 640)


@pytest.mark.slow
def test_real_speech(train, tmp_path, letters):
    """Letters at 40 ms per frame, from the bundled checkpoint: the loss falls."""
    data, audio = letters
    settings = ["model.frame_period_ms=40", "optimization.max_update=12", "model.apply_mask=false"]
    assert train(tmp_path / "out", *settings, data=data, init="tiny") == 0
    lines = re.findall(r"\[train_inner\]\[INFO\] - (\{.*\})", (tmp_path / "out" / "hydra_train.log").read_text())
    losses = [float(json.loads(line)["loss"]) for line in lines]
    assert len(losses) == 12 and sum(losses[-4:]) < 0.6 * sum(losses[:4])
    assert_tuned(tmp_path / "out" / LAST, audio)


@pytest.mark.slow
def test_fairseqs_own_command(tmp_path, letters):
    """``fairseq-hydra-train`` with common.user_dir and the packaged configuration fine-tunes at a rate and resumes."""
    (data, audio), checkpoints, log = letters, tmp_path / "checkpoints", tmp_path / "log"
    convert("tiny", tmp_path / "tiny.pt")
    package = pathlib.Path(s3prl_ofa.pretrain.__file__).parent
    command = ["--config-dir", package / "configs", "--config-name", "ofa_ctc", f"common.user_dir={package}"]
    command += [f"task.data={data}", f"+model.w2v_path={tmp_path / 'tiny.pt'}", "+model.frame_period_ms=40"]
    command += [f"checkpoint.save_dir={checkpoints}", f"hydra.run.dir={tmp_path / 'run'}", "common.fp16=false"]
    command += ["common.cpu=true", "dataset.num_workers=0", "optimization.update_freq=[1]", "common.log_format=simple"]
    command += ["model.mask_channel_length=8"]
    for updates in (2, 3):
        process = start([*command, f"optimization.max_update={updates}"], log, ["fairseq_cli.hydra_train"])
        assert process.wait(600) == 0, log.read_text()[-3000:]
        saved = read_checkpoint(checkpoints / "checkpoint_last.pt")
        assert saved["optimizer_history"][-1]["num_updates"] == updates
        assert saved["cfg"]["model"]["_name"] == "ofa_wav2vec_ctc"
    assert "@ 2 updates" in log.read_text()
    assert_tuned(checkpoints / "checkpoint_last.pt", audio)


def test_labels_that_do_not_fit(train, tmp_path, capfd):
    """The utterance is named before its loss would be infinite."""
    assert train(tmp_path / "out", "model.frame_period_ms=400") == 1
    message = capfd.readouterr().err.splitlines()[-1]
    assert re.search(
        r"error: id1\S+opus has \d+ frames, but CTC needs \d+ for its \d+ labels; give a lower model.lambd", message
    )


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["model.lambd=0.5", "model.frame_period_ms=40"], "are both given; expected one of them"),
        (["model.lambd=2"], "model.lambd must be in [0, 2), found 2"),
        (["model.frame_period_ms=10"], "model.frame_period_ms must be a finite number of at least 20, found 10"),
        (["task.normalize=true"], "was pretrained with task.normalize=false; give it here too"),
    ],
)
def test_settings_that_cannot_be(train, tmp_path, capfd, settings, said):
    assert train(tmp_path / "out", *settings) == 2
    assert said in capfd.readouterr().err.splitlines()[-1]


def test_a_plain_model_has_no_rate(train, tmp_path, capfd):
    OFAWav2Vec2(ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1)).save(tmp_path / "plain.safetensors")
    assert train(tmp_path / "out", "model.lambd=0.5", init=tmp_path / "plain.safetensors") == 2
    assert "has no compressor; expected a once-for-all checkpoint" in capfd.readouterr().err.splitlines()[-1]
