"""A few steps of asr, pr and sid give the scores they always gave, and the weights that S3PRL's own runner gives."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
import torch
import yaml
from paths import CKPT, GOLDEN, TESTS

from s3prl_ofa import cli

STEPS = 4
EVERY = ",,".join(f"config.runner.{name}={STEPS}" for name in ("total_steps", "eval_step", "save_step", "log_step"))
SPLITS = {"asr": "test-clean", "pr": "test", "sid": "test"}
RUNS = [(task, frames) for frames in ("native", "upsampled") for task in SPLITS]
REFERENCE = GOLDEN / "downstream_scores.json"  # written by running this file with a new folder
# PyTorch's kernels for AVX-512, AVX2 and neither (ATEN_CPU_CAPABILITY) differ by up to 2e-6 of a value; other random
# draws or one frame more change the second or third digit.
TOLERANCE = 1e-4


def train_and_evaluate(task: str, frames: str, corpora: pathlib.Path, folder: pathlib.Path) -> dict[str, float]:
    """Scores on the test split, and the norm of all trained weights."""
    data = ["--librispeech", corpora / "LibriSpeech", "--voxceleb1", corpora / "VoxCeleb1"]
    data += ["--prepared", corpora / "prepared", "--mini"]
    upstream = ["-u", "ofa_wav2vec2", "-k", CKPT, "--lambd", "0.5", "--output-frames", frames, "--device", "cpu"]
    command = ["-m", "train", "-d", task, "-p", folder, "--seed", "1", *upstream, *data, "-o", EVERY]
    assert cli.main(["run_downstream", *map(str, command)]) == 0
    assert cli.main(["run_downstream", "-m", "evaluate", "-e", str(folder), "-t", SPLITS[task]]) == 0
    scores = json.loads((folder / f"measured_{SPLITS[task]}.json").read_text())["scores"]
    weights = torch.cat([value.double().flatten() for value in trained_weights(folder).values()])
    return {**scores, "norm": float(weights.norm())}


def stored(folder: pathlib.Path) -> dict:
    return torch.load(folder / f"states-{STEPS}.ckpt", map_location="cpu", weights_only=True)


def trained_weights(folder: pathlib.Path) -> dict[str, torch.Tensor]:
    states = stored(folder)
    return {
        f"{part}.{name}": value
        for part in ("Featurizer", "Downstream")
        for name, value in states[part].items()
        if name != "best_score"
    }


@pytest.fixture(scope="module")
def results(corpora, tmp_path_factory) -> tuple[pathlib.Path, dict[str, dict[str, float]]]:
    """The folder of the experiments, and what each scored."""
    root = tmp_path_factory.mktemp("scores")
    return root, {
        f"{task} {frames}": train_and_evaluate(task, frames, corpora, root / task / frames) for task, frames in RUNS
    }


@pytest.mark.parametrize(("task", "frames"), RUNS)
def test_scores_stay_what_they_are(task, frames, results):
    """Scores and weights are those on record, up to the rounding of another CPU."""
    expected = json.loads(REFERENCE.read_text())[f"{task} {frames}"]
    assert results[1][f"{task} {frames}"] == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(("task", "frames"), RUNS)
def test_utterances_sum_up_to_the_scores(task, frames, results):
    """Errors and lengths, or hits, of the single utterances give the scores of the split, each utterance once."""
    folder, split = results[0] / task / frames, SPLITS[task]
    scores = json.loads((folder / f"measured_{split}.json").read_text())["scores"]
    found = json.loads((folder / f"utterances_{split}.json").read_text())
    names = found.pop("utterances")
    assert len(set(names)) == len(names) == 2 and found.keys() == scores.keys() - {"loss"}
    for metric, parts in found.items():
        percent = 100 if task == "asr" else 1
        assert percent * sum(parts["sums"]) / sum(parts["counts"]) == pytest.approx(scores[metric])
        assert len(parts["sums"]) == len(parts["counts"]) == 2


@pytest.fixture(scope="module")
def by_s3prl(results, tmp_path_factory) -> pathlib.Path:
    """The same experiments by S3PRL's own run_downstream, from the configs that ours have stored."""
    root = tmp_path_factory.mktemp("by_s3prl")
    for task, frames in RUNS:
        states = stored(results[0] / task / frames)
        (root / f"{task}-{frames}.yaml").write_text(yaml.safe_dump(states["Config"]))
    code = f"""
import s3prl_ofa.superb
import sys
from s3prl import run_downstream
from s3prl.downstream.voxceleb1 import dataset
from s3prl_ofa.superb.compat.packed_lstm import packed_lstm_in_asr
dataset.CACHE_PATH = "cache"
for task, frames in {RUNS}:
    downstream = dict(asr="asr", pr="ctc", sid="voxceleb1")[task]
    options = "{{lambd: 0.5, output_frames: " + frames + "}}"
    upstream = ["-u", "ofa_wav2vec2", "-k", {CKPT!r}, "-g", options, "--device", "cpu"]
    sys.argv[1:] = ["-m", "train", "-d", downstream, "-c", task + "-" + frames + ".yaml", "--seed", "1", *upstream]
    sys.argv += ["-p", task + "/" + frames]
    with packed_lstm_in_asr():
        run_downstream.main()
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS.parent)}
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True)
    return root


@pytest.mark.parametrize(("task", "frames"), RUNS)
def test_s3prls_own_runner_trains_the_same(task, frames, results, by_s3prl):
    """Weights and optimizer state are those of S3PRL's own runner, bit for bit. Its asr model is given the LSTM that
    ours has, which equals PyTorch's only up to rounding."""
    ours, theirs = (stored(root / task / frames) for root in (results[0], by_s3prl))
    for part in ("Featurizer", "Downstream", "Optimizer"):
        torch.testing.assert_close(ours[part], theirs[part], rtol=0, atol=0)


if __name__ == "__main__":
    from superb_corpora import make_corpora

    folder = pathlib.Path(sys.argv[1])
    torch.set_num_threads(1)
    make_corpora(folder / "corpora")
    scores = {
        f"{task} {frames}": train_and_evaluate(task, frames, folder / "corpora", folder / task / frames)
        for task, frames in RUNS
    }
    REFERENCE.write_text(json.dumps(scores, indent=1) + "\n")
