"""A full disk: one sentence with the path, nothing half written, existing files kept, and work that can be resumed.

Real writes by every library hit a real limit on the size of a file, which needs neither privileges nor a mount.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from guidance_data import write_manifest
from paths import CKPT, ROOT
from pretraining import corpus_settings, make_corpus, read_checkpoint, run_here, write_config
from sweep_rows import grid_rows, write_sweep

from s3prl_ofa import cli
from s3prl_ofa.io.files import DiskFull, append, atomic_path, writing

pytestmark = pytest.mark.slow  # without coverage, whose own file would meet the limit too
REASON = "no room to write it (File too large); free some space or raise the limit, then resume or repeat the command"
CODE = """
import json, resource, sys
from s3prl_ofa import cli
limit, commands = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
statuses = []
for command in commands:
    print("=====", file=sys.stderr, flush=True)
    statuses.append(cli.main(command))
print("statuses", *statuses)
"""


def limited(limit: int, *commands: list) -> list[str]:
    """The stderr of each command, all of which must fail, when no file may be larger than ``limit`` bytes."""
    text = json.dumps([limit, [list(map(str, command)) for command in commands]])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CODE, text], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.splitlines()[-1:] == ["statuses" + " 1" * len(commands)], done.stdout + done.stderr
    return done.stderr.split("=====\n")[1:]


def content(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_extract(audio_folder, golden_checkpoint, tmp_path):
    """In each format."""
    outs = [tmp_path / name for name in ("npy", "safetensors", "hdf5")]
    command = ["extract", audio_folder, "--ckpt", golden_checkpoint]
    commands = [[*command, "--out", out, "--format", out.name] for out in outs]
    for out, command, said in zip(outs, commands, limited(3000, *commands), strict=True):
        assert said.count("\n") == 1 and said.startswith(f"s3prl-ofa extract: error: {out / 'features'}")
        assert said.endswith(f": {REASON}\n")
        left = content(out)
        assert not [path for path in left if path.name.startswith(".")]
        assert not [path for path in left if "features" in path.parts] and left[out / "index.jsonl"] == b""
        assert cli.main(list(map(str, command))) == 0


def test_convert_and_report(golden_checkpoint, tmp_path):
    """Existing files and folders stay."""
    from s3prl_ofa.model import ModelConfig, OFAWav2Vec2

    OFAWav2Vec2(ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1)).save(tmp_path / "plain.safetensors")
    sweep = write_sweep(tmp_path / "sweep", grid_rows())
    assert cli.main(["report", str(sweep)]) == 0
    targets = [tmp_path / "out" / name for name in ("a.pt", "a.safetensors", "folder")]
    commands = [["convert", tmp_path / "plain.safetensors", target] for target in targets]
    for command in commands:
        assert cli.main(list(map(str, command))) == 0
    before = content(tmp_path)
    for command in commands:
        command.append("--force")
    said = limited(9000, *commands, ["report", sweep])
    for target, text in zip([*targets, sweep / "report" / "results.csv"], said, strict=True):
        lines = [line for line in text.splitlines() if not line.startswith("WARNING")]
        assert len(lines) == 1 and lines[0].endswith(f": error: {target}: {REASON}")
    assert content(tmp_path) == before


def test_guidance_and_prepare(tmp_path, make_wave):
    """When guidance cannot be made again, both of its files stay."""
    soundfile.write(tmp_path / "a.flac", make_wave(30.0, 1), 16_000)
    manifest = write_manifest(tmp_path / "train.tsv", tmp_path, {"a.flac": 480_000})
    out = tmp_path / "out"
    ctm = tmp_path / "a.ctm"
    ctm.write_text("".join(f"a 1 {0.1 * number:.2f} 0.1 x\n" for number in range(300)))
    again = ["guidance", "ctm", ctm, "--manifest", manifest, "--out", out, "--force", "--jobs", "1"]
    assert cli.main(list(map(str, again))) == 0
    before = content(out)
    assert len(before) == 3
    ctm.write_text("".join(f"a 1 {0.2 * number:.2f} 0.2 x\n" for number in range(150)))
    voices = tmp_path / "voices"
    for number in range(30):
        (voices / f"speaker{number}").mkdir(parents=True)
        shutil.copy(tmp_path / "a.flac", voices / f"speaker{number}" / "a.flac")
    said = limited(400, again, ["prepare", "manifest", voices, "--out", tmp_path / "manifests"])
    for text, target in zip(said, (out, tmp_path / "manifests"), strict=True):
        line = [line for line in text.replace("\r", "\n").splitlines() if "error" in line]
        assert len(line) == 1 and f"error: {target}/" in line[0] and line[0].endswith(REASON), text
    assert content(out) == before
    assert content(tmp_path / "manifests") == {}


def test_pretrain(tmp_path, capfd):
    """A checkpoint without room ends the training; the previous one stays, and the same command resumes from it."""
    out = tmp_path / "out"
    config = write_config(tmp_path / "tiny.yaml", dataset={"disable_validation": True})
    command = ["pretrain", "--config", config, *corpus_settings(make_corpus(tmp_path / "corpus"), out)]
    assert run_here([*command[1:], "optimization.max_update=1"]) == 0
    before = content(out / "checkpoints")
    (said,) = limited(100_000, [*command, "optimization.max_update=2"])
    error = [line for line in said.splitlines() if "[INFO]" not in line]
    assert error == [f"s3prl-ofa pretrain: error: {out / 'checkpoints' / 'checkpoint_last.pt'}: {REASON}"]
    assert content(out / "checkpoints") == before
    assert run_here([*command[1:], "optimization.max_update=2"]) == 0
    last = read_checkpoint(out / "checkpoints" / "checkpoint_last.pt")
    assert last["optimizer_history"][-1]["num_updates"] == 2


def test_checkpoints_of_a_downstream_training(tmp_path):
    """torch raises a RuntimeError; the experiment keeps its last checkpoint."""
    from s3prl_ofa.superb.downstream.checkpoints import SafeSaves

    saves = SafeSaves()
    saves.save({"Step": 1}, str(tmp_path / "states-1.ckpt"))
    code = (
        "import resource, sys, torch; from s3prl_ofa.superb.downstream.checkpoints import SafeSaves\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "saves = SafeSaves(); saves.remove(sys.argv[1] + '/states-1.ckpt')\n"
        "saves.save({'w': torch.zeros(5000)}, sys.argv[1] + '/states-2.ckpt')"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == f"s3prl_ofa.io.files.DiskFull: {tmp_path / 'states-2.ckpt'}: {REASON}"
    assert [path.name for path in tmp_path.iterdir()] == ["states-1.ckpt"]


def test_settings_of_an_experiment(tmp_path):
    """The first file of an experiment is named like every other, and is not left half written."""
    command = ["run_downstream", "-m", "train", "-u", "ofa_wav2vec2", "-k", ROOT / "tests" / "golden" / "ref_tiny.pt"]
    command += ["-d", "sid", "--mini", "--voxceleb1", ROOT / "s3prl_ofa" / "demo" / "audio", "--lambd", 1]
    (said,) = limited(700, [*command, "-p", tmp_path / "exp", "-o", "config.runner.total_steps=1"])
    start, end = f"s3prl-ofa run_downstream: error: {tmp_path / 'exp'}/args_", f".yaml: {REASON}"
    assert said.splitlines()[-1].startswith(start) and said.splitlines()[-1].endswith(end)
    assert not list((tmp_path / "exp").glob("*args_*"))


def test_files_that_s3prl_writes(tmp_path, make_wave):
    """Such as the predictions of an evaluation: the error names the experiment's folder."""
    voices, exp, lines = tmp_path / "voices", tmp_path / "exp", []
    for speaker in ("ada", "bob"):
        (voices / speaker).mkdir(parents=True)
        for number in range(60):  # with long names, so that the predictions are larger than our own files
            name = f"{speaker}/{'x' * 180}{number}.wav"
            soundfile.write(voices / name, make_wave(0.1, number), 16_000)
            lines.append(f"{number % 3 + 1} {name}\n")
    (tmp_path / "list").write_text("".join(lines))
    train = ["run_downstream", "-m", "train", "-u", "ofa_wav2vec2", "-k", CKPT, "-d", "sid", "--mini", "-p", exp]
    train += ["--voxceleb1", voices, "--speaker-list", tmp_path / "list"]
    train += ["-o", "config.runner.total_steps=1,,config.runner.save_step=1"]
    assert cli.main(list(map(str, train))) == 0
    ours = [path.stat().st_size for path in exp.glob("*.yaml")]
    (said,) = limited(max(ours) + 1000, ["run_downstream", "-m", "evaluate", "-e", exp])
    assert said.splitlines()[-1] == f"s3prl-ofa run_downstream: error: {exp}: {REASON}"
    assert 0 < (exp / "test_predict.txt").stat().st_size <= max(ours) + 1000  # cut by the limit
    assert "Traceback" not in said


WRITERS = {
    "text": lambda path: path.write_text("x" * 100_000),
    "numpy": lambda path: np.save(path, np.zeros(20_000)),
    "torch": lambda path: torch.save(torch.zeros(20_000), path),
    "nothing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("name", WRITERS)
def test_errors_of_libraries(name, tmp_path):
    """Whether the library gives the reason or not; other errors are unchanged."""
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    expected = (ValueError, "other") if name == "nothing" else (DiskFull, f"{tmp_path}/a.npy: no room to write it")
    with pytest.raises(expected[0], match=expected[1]), atomic_path(tmp_path / "a.npy") as temporary:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
        try:
            WRITERS[name](temporary)
            raise ValueError("other")
        except (OSError, RuntimeError) as error:
            raise error from None
        finally:
            if name == "text":
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_full(tmp_path):
    """The system's error, which does not name the file."""
    match = r"^here: no room to write it \(No space left on device\)"
    with pytest.raises(DiskFull, match=match), writing("here"), open("/dev/full", "w") as file:
        file.write("x" * 100_000)


def test_a_line_that_has_no_room(tmp_path, monkeypatch):
    """A file to which a line is appended keeps its lines, and gets no part of the new one."""
    path, write = tmp_path / "rows", os.write
    append(path, b"one\n")
    monkeypatch.setattr(os, "write", lambda descriptor, text: write(descriptor, text[:5]))
    with pytest.raises(DiskFull, match=f"{path}: no room"):
        append(path, b"another one\n")
    assert path.read_bytes() == b"one\n"


@pytest.mark.parametrize("library", ["tensorboard.summary.writer", "tensorboardX"])
def test_tensorboard(library, tmp_path):
    """One warning that nothing more is logged; the training does not wait for it, and there are no tracebacks."""
    code = (
        "import importlib, logging, resource, sys, threading\n"
        "from s3prl_ofa.io.tensorboard import outlast_full_disk\n"
        "outlast_full_disk(importlib.import_module(sys.argv[1] + '.record_writer').RecordWriter)\n"
        "logging.basicConfig(format='%(message)s')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "module = 'tensorboardX' if sys.argv[1] == 'tensorboardX' else 'torch.utils.tensorboard'\n"
        "writer = importlib.import_module(module).SummaryWriter(sys.argv[2])\n"
        "for step in range(100): writer.add_scalar('loss', 1.0, step)\n"
        "writer.flush(); writer.close(); print('done')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, library, tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.stdout == "done\n"
    assert done.stderr.count("nothing more is logged to TensorBoard: File too large") == 1
    assert "Traceback" not in done.stderr


def test_errors_that_are_their_own_cause():
    """An error that was kept and raised again can have itself among its causes: it passes through all the same."""
    first, second = ValueError("first"), KeyError("second")
    first.__context__, second.__context__ = second, first
    with pytest.raises(ValueError, match="first"), writing("file"):
        raise first
