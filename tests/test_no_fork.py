"""Platforms without fork (macOS, Windows): data workers are fresh interpreters, and some modules are missing."""

import json
import os
import subprocess
import sys

import pytest
import torch
from paths import ROOT
from pretraining import make_corpus

CKPT = ROOT / "tests" / "golden" / "ref_tiny.pt"


def python(code: str, *arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


@pytest.mark.slow
def test_every_module_without_what_windows_lacks():
    """All can be imported without POSIX's modules, signals and calls."""
    code = """
import importlib, os, pkgutil, signal, sys
import fairseq, matplotlib, submitit, tensorboardX, torch.distributed.launcher, transformers  # they know Windows
sys.modules.update(dict.fromkeys(("fcntl", "resource", "pwd", "grp", "termios")))
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGALRM", "SIGCHLD"):
    delattr(signal, name)
for name in ("fork", "forkpty", "killpg", "getpgid", "register_at_fork", "getuid"):
    delattr(os, name)
import s3prl_ofa
for module in pkgutil.walk_packages(s3prl_ofa.__path__, "s3prl_ofa."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from s3prl_ofa.superb.downstream.metrics import peak_memory_mb
assert peak_memory_mb(torch.device("cpu")) is None
print("imported")
"""
    done = python(code)
    assert done.stdout == "imported\n", done.stderr[-3000:]


@pytest.mark.slow
def test_pretraining_data(tmp_path):
    """The dataset of pretraining gives the same batches in such a worker."""
    from s3prl_ofa.pretrain.dataset import GuidedAudioDataset

    corpus = make_corpus(tmp_path / "corpus", train=4)
    roots = {f"{kind}_root": str(corpus / "guidance" / kind) for kind in ("alpha", "boundaries")}
    manifest = str(corpus / "data" / "train.tsv")
    dataset = GuidedAudioDataset(manifest, sample_rate=16_000, max_sample_size=9_000, **roots)

    def batches(**workers):
        return list(torch.utils.data.DataLoader(dataset, 2, collate_fn=dataset.collater, **workers))

    for one, other in zip(batches(), batches(num_workers=1, multiprocessing_context="spawn"), strict=True):
        assert one["id"].equal(other["id"]) and one["net_input"]["source"].equal(other["net_input"]["source"])
        guidance = one["net_input"]["guidance"]
        assert all(guidance[key].equal(other["net_input"]["guidance"][key]) for key in guidance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "key"), [("sid", "datarc.num_workers"), ("pr", "corpus.num_workers"), ("asr", "datarc.num_workers")]
)
def test_tasks(task, key, corpora, tmp_path):
    """S3PRL's data is read in such workers, which know our additions to S3PRL."""
    code = """
import json, multiprocessing, sys
from s3prl_ofa import cli
multiprocessing.set_start_method("spawn")
sys.exit(cli.main(json.loads(sys.argv[1])))
"""
    steps = f"config.runner.total_steps=1,,config.runner.eval_step=9,,config.downstream_expert.{key}=1"
    command = ["run_downstream", "-m", "train", "-u", "ofa_wav2vec2", "-k", CKPT, "-d", task, "--mini", "-o", steps]
    command += ["--librispeech", corpora / "LibriSpeech", "--voxceleb1", corpora / "VoxCeleb1", "--lambd", 0]
    command += ["--prepared", corpora / "prepared", "-p", tmp_path / "exp"]
    done = python(code, json.dumps(list(map(str, command))))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "exp" / "measured_train.json").exists() or "measured frame period" in done.stderr
