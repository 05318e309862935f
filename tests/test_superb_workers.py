"""Data workers that are fresh interpreters, as on macOS and Windows: S3PRL's datasets work there too."""

import multiprocessing
import subprocess
import sys
import textwrap

from superb_corpora import make_corpora

from s3prl_ofa import cli
from s3prl_ofa.superb import register

MODULES = ("s3prl.downstream.asr.dataset", "s3prl.downstream.ctc.corpus.libriphone")
MODULES += ("s3prl.downstream.voxceleb1.dataset",)


def test_datasets_bring_us_along():
    """Unpickled in a fresh Python, a dataset of each task finds S3PRL with its shims, our corpora and our loader."""
    register.register()
    code = f"""
    import importlib, sys
    from multiprocessing.reduction import ForkingPickler
    from s3prl_ofa.superb import register
    for name in {MODULES!r}:
        module = importlib.import_module(name)
        classes = [value for value in vars(module).values() if getattr(value, "__module__", None) == name]
        found = next(each for each in classes if each.__name__.endswith("Dataset"))
        dataset = object.__new__(found)
        dataset.X, dataset.file_list, dataset.dataset = [["a"]] * 3, ["a"] * 3, ["a"] * 3
        sys.stdout.write(bytes(ForkingPickler.dumps((dataset, dataset.__len__))).hex() + "\\n")
    """
    pickles = python(code)
    assert len(pickles) == 3
    code = """
    import pickle, sys
    for line in sys.stdin:
        dataset, length = pickle.loads(bytes.fromhex(line))
        assert length.__self__ is dataset
        print(type(dataset).__name__, len(dataset), length())
    from s3prl.downstream.ctc import data
    from s3prl_ofa.superb import shims
    assert data.torchaudio.load is shims.load_checked
    """
    names = ("SequenceDataset", "LibriPhoneDataset", "SpeakerClassifiDataset")
    assert python(code, "\n".join(pickles)) == [f"{name} 3 3" for name in names]


def python(code: str, given: str = "") -> list[str]:
    """The lines that code prints in a fresh Python."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, input=given, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_task_trains_with_spawned_workers(golden_checkpoint, tmp_path, monkeypatch):
    """PR, whose dataset is of our own corpora, trains with such workers."""
    monkeypatch.chdir(tmp_path)
    make_corpora(tmp_path / "data")
    spawn = multiprocessing.get_context("spawn")
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", spawn)
    command = f"run_downstream -m train -u ofa_wav2vec2 -k {golden_checkpoint} -d pr -p exp --mini"
    command += " --librispeech data --prepared data/prepared -o config.downstream_expert.corpus.num_workers=1"
    steps = ("total_steps", "eval_step", "save_step", "log_step")
    command += "".join(f",,config.runner.{step}=2" for step in steps)
    assert cli.main(command.split()) == 0
    assert (tmp_path / "exp" / "states-2.ckpt").exists()
