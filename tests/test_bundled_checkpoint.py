"""The bundled checkpoint: small, trained, and without folder names of the training machine."""

import csv
import json
import pathlib

import pytest
import soundfile
import torch
import yaml
from paths import ROOT
from safetensors import safe_open

import s3prl_ofa
from s3prl_ofa import cli
from s3prl_ofa.checkpoint.sources import BUNDLED
from s3prl_ofa.errors import CheckpointError
from s3prl_ofa.guidance.alignments import read_ctm
from s3prl_ofa.guidance.scores import boundary_scores, uniform_boundaries
from s3prl_ofa.io.audio import SAMPLE_RATE

CHECKPOINT = BUNDLED["tiny"]
MODEL_CARD = ROOT / "MODEL_CARD.md"
EVERY = 16  # of the test speakers' 329 utterances


@pytest.fixture(scope="module")
def bundled():
    return s3prl_ofa.load("tiny")


@pytest.fixture(scope="module")
def heard(bundled, mini_librispeech):
    """The output at lambd 1 and the aligned phones of utterances of speakers that training did not hear."""
    with (mini_librispeech / "utterances.tsv").open(newline="") as file:
        rows = [
            row for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE) if row["text_split"] == "test"
        ]
    phones = read_ctm(mini_librispeech / "phones.ctm.gz", {row["utterance"] for row in rows})
    rows = [row for row in rows if row["utterance"] in phones][::EVERY]
    paths = [mini_librispeech / "audio" / row["speaker"] / row["chapter"] / f"{row['utterance']}.opus" for row in rows]
    waves = [soundfile.read(path, dtype="float32")[0] for path in paths]
    return bundled.extract(waves, lambd=1.0, layers=0), [phones[row["utterance"]] for row in rows]


def test_it_can_be_handed_on(bundled):
    """float16, below 20 MB, 5 to 15 million parameters, with the weights of pretraining, and a model card."""
    assert CHECKPOINT.stat().st_size < 20e6
    assert 5e6 < sum(parameter.numel() for parameter in bundled.parameters()) < 15e6
    with safe_open(CHECKPOINT, "pt") as file:
        metadata = file.metadata()
        names = list(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.float16}
    assert {"quantizer.vars", "mask_emb", "final_proj.weight", "cif_subsampler.alpha_fn.cnn.weight"} <= set(names)
    assert json.loads(metadata["task_cfg"])["data"] == "" and json.loads(metadata["model_cfg"])["subsample"] == "cif"
    card = MODEL_CARD.read_text("utf-8")
    assert CHECKPOINT.name in card and "phone classifier" in card


def test_its_name(bundled, tmp_path, monkeypatch, capsys):
    """``tiny`` is the bundled checkpoint wherever a checkpoint is expected, ./tiny a file of that name."""
    monkeypatch.chdir(tmp_path)
    torch.hub.set_dir(tmp_path)
    upstream = torch.hub.load(str(ROOT), "ofa_wav2vec2_tiny", source="local", lambd=0.5)
    assert upstream.model.fingerprint() == bundled.fingerprint() and upstream.options.lambd == 0.5
    for name in ("other.pt", "folder"):
        assert cli.main(["convert", "tiny", name]) == 0
        assert s3prl_ofa.load(name).fingerprint() == bundled.fingerprint()
    capsys.readouterr()
    assert cli.main(["info", "tiny", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == "safetensors"
    for name in ("./tiny", pathlib.Path("tiny")):
        with pytest.raises(CheckpointError, match="^tiny: no such file"):
            s3prl_ofa.load(name)


def test_its_training_comes_with_it():
    """The settings, without folder names of the machine, and the curves."""
    settings = CHECKPOINT.with_suffix(".yaml").read_text("utf-8")
    assert "/tmp/" not in settings and yaml.safe_load(settings)["model"]["mixup"] is True
    with CHECKPOINT.with_suffix(".csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert int(last["update"]) == yaml.safe_load(settings)["training"]["update"]
    assert all(float(last[f"masked_accuracy_{lambd}"]) > 0.1 for lambd in ("0", "0.5", "1"))  # chance: 1 of 51
    assert all(float(last[f"dev_accuracy_{lambd}"]) > 0.5 for lambd in ("0", "0.5", "1"))


def test_figures_of_its_training(bundled):
    """README and card give the size, the settings and the duration of the training that the files have."""
    parameters = sum(parameter.numel() for parameter in bundled.parameters()) / 1e6
    with CHECKPOINT.with_suffix(".csv").open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    card, readme = (" ".join((ROOT / name).read_text("utf-8").split()) for name in ("MODEL_CARD.md", "README.md"))
    assert f"float16, {CHECKPOINT.stat().st_size / 1e6:.1f} MB, {parameters:.1f} million parameters" in card
    assert f"| {parameters:.1f} M | 20 to 85 ms |" in readme
    assert round(95 / parameters) == 11 and "one eleventh the size of Base" in card
    channels = [layer[0] for layer in bundled.config.conv_layers]
    assert f"seven convolutions of {min(channels)} to {max(channels)} channels" in " ".join(card.split())
    assert f"six encoder layers of width {bundled.config.dim}" in card and bundled.config.layers == 6
    assert f"It took {float(last['seconds']) / 60:.1f} minutes" in card and f"{int(last['update']):,} updates" in card


def test_figures_of_its_corpus(mini_librispeech):
    """README, card and results give the hours that the checkpoint and the tasks are trained on."""
    with (mini_librispeech / "utterances.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))

    def hours(column: str, *splits: str) -> float:
        return sum(int(row["samples"]) for row in rows if row[column] in splits) / SAMPLE_RATE / 3600

    texts = [" ".join((ROOT / name).read_text("utf-8").split()) for name in ("MODEL_CARD.md", "docs/results.md")]
    assert f"of a fixed split, {hours('text_split', 'train', 'dev'):.1f} hours" in texts[0]
    assert f"pr and asr train on {hours('text_split', 'train'):.1f} hours" in texts[1]
    assert f"sid trains on {hours('speaker_split', 'train'):.1f} hours of all 28 speakers" in texts[1]
    assert len({row["speaker"] for row in rows}) == 28


def test_its_frame_period(heard):
    """On speakers that it has not heard, lambd 1 gives a mean frame period from 70 to 95 ms."""
    out, _ = heard
    period = 20.0 * float(out.input_lengths.sum() / out.lengths.sum())
    assert 70 <= period <= 95


@pytest.mark.parametrize("tolerance", [0.02, 0.04])
def test_its_frames_end_where_phones_end(heard, tolerance):
    """At lambd 1 the frames' ends match phone boundaries better than equidistant ones, by both scores."""
    out, phones = heard
    found = [out.times[row, : length - 1, 1].tolist() for row, length in enumerate(out.lengths.tolist())]
    seconds = [length * 320 / SAMPLE_RATE for length in out.input_lengths.tolist()]
    even = [uniform_boundaries(length, len(one)) for length, one in zip(seconds, found, strict=True)]
    wanted = [[one.start for one in intervals[1:]] for intervals in phones]
    ours, uniform = (boundary_scores(one, wanted, tolerance) for one in (found, even))
    assert ours.f1 > uniform.f1 + 0.05 and ours.r_value > uniform.r_value + 0.05
