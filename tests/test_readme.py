"""Every example of the README runs.

The blocks of one language run in their order in one folder, where what the examples name exists: checkpoint.pt,
speech.flac, audio, LibriSpeech, phones.ctm.gz and textgrids (its alignments), VoxCeleb1, s3prl (a source checkout) and
s3prl-ofa (this repository). A comment before a block can change that: ``<!-- test: skip, REASON -->`` leaves it out,
``<!-- test: append TEXT -->`` adds TEXT to each of its commands, ``<!-- test: replace THIS -> THAT -->`` puts THAT
where it says THIS; the last two make it short.
"""

import gzip
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import soundfile
from guidance_data import write_textgrid
from paths import ROOT

from s3prl_ofa.io.audio import SAMPLE_RATE, load_audio
from s3prl_ofa.superb.compat.link import CHECKOUT_FILES

README = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(
    r"(?:<!-- test: (?P<order>skip|append|replace)[ ,]+(?P<text>.*?) -->\n)?"
    r"```(?P<language>\w+)\n(?P<code>.*?)```",
    re.S,
)
DEMO_AUDIO = ROOT / "s3prl_ofa" / "demo" / "audio"
LIBRISPEECH_SPLITS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}


def blocks(language: str) -> list[str]:
    """The examples of a language, as they are run."""
    found = []
    for match in BLOCK.finditer(README):
        if match["language"] != language or match["order"] == "skip":
            continue
        code = match["code"]
        if match["order"] == "append":
            code = re.sub(r"(?m)$(?<!\n)", f" {match['text']}", code.rstrip("\n")) + "\n"
        if match["order"] == "replace":
            this, that = match["text"].split(" -> ")
            assert this in code, f"{this} is not in the example"
            code = code.replace(this, that)
        found.append(code)
    return found


@pytest.fixture
def reader_folder(tmp_path, golden_checkpoint, audio_folder, monkeypatch) -> pathlib.Path:
    """The files that the README's examples name."""
    shutil.copy(golden_checkpoint, tmp_path / "checkpoint.pt")
    shutil.copy(audio_folder / "a.flac", tmp_path / "speech.flac")
    (tmp_path / "VoxCeleb1").symlink_to(DEMO_AUDIO)
    (tmp_path / "s3prl-ofa").symlink_to(ROOT)
    make_librispeech(tmp_path / "LibriSpeech")
    make_alignments(tmp_path)
    installed = pathlib.Path(importlib.util.find_spec("s3prl").origin).parent
    for name in ("__init__.py", *CHECKOUT_FILES):
        target = tmp_path / "s3prl" / "s3prl" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(installed / name, target)
    command = tmp_path / "bin" / "s3prl-ofa"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m s3prl_ofa "$@"\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", str(command.parent), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_librispeech(root: pathlib.Path) -> None:
    """A few bundled utterances as LibriSpeech lays them out."""
    for line in (DEMO_AUDIO / "transcripts.tsv").read_text("utf-8").splitlines():
        name, text = line.split("\t")
        speaker, part, number = name.removesuffix(".opus").split("/")
        if speaker not in ("id10001", "id10002"):
            continue
        chapter = list(LIBRISPEECH_SPLITS).index(part)
        folder = root / LIBRISPEECH_SPLITS[part] / speaker[2:] / f"{chapter}"
        folder.mkdir(parents=True, exist_ok=True)
        utterance = f"{speaker[2:]}-{chapter}-{number}"
        (source,) = DEMO_AUDIO.glob(f"*/wav/{name}")
        soundfile.write(folder / f"{utterance}.flac", load_audio(source), SAMPLE_RATE)
        words = re.sub(r"[^A-Z' ]", "", text.upper())
        with (folder / f"{speaker[2:]}-{chapter}.trans.txt").open("a") as file:
            file.write(f"{utterance} {words}\n")


def make_alignments(folder: pathlib.Path) -> None:
    """phones.ctm.gz and textgrids for LibriSpeech: a segment every 100 ms."""
    lines = []
    for path in (folder / "LibriSpeech").rglob("*.flac"):
        tenths = soundfile.info(path).frames * 10 // SAMPLE_RATE
        phones = [(0.1 * i, 0.1 * (i + 1), f"P{i}") for i in range(tenths)]
        lines += [f"{path.stem} 1 {start:.2f} 0.1 {label}\n" for start, _, label in phones]
        write_textgrid(folder / "textgrids" / f"{path.stem}.TextGrid", phones)
    (folder / "phones.ctm.gz").write_bytes(gzip.compress("".join(lines).encode()))


def test_few_examples_are_skipped():
    """Nearly all examples run: two need a cluster, and the make targets are tested by running them."""
    orders = [match["order"] for match in BLOCK.finditer(README)]
    assert orders.count("skip") <= 2 and len(blocks("bash")) >= 6 and len(blocks("python")) >= 3
    assert "make demo" in README and "make test" in README


def test_append_reaches_every_command():
    """The mechanism that shortens examples adds to each line of a block."""
    (shortened,) = [code for code in blocks("bash") if "--mini" in code and "asr_40ms" in code]
    assert len(shortened.splitlines()) == 3
    assert all(line.endswith("log_step=2") for line in shortened.splitlines())


def test_bash_examples(reader_folder):
    """Every command of the README succeeds and leaves what it says."""
    for code in blocks("bash"):
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        if "sid_slow" in code and "evaluate" in code:
            assert done.stdout.count("test acc: ") == 2
        if "info" in code:
            assert "mean alpha" in done.stdout and '"mean_alpha"' in done.stdout
    for name in ("asr_40ms", "pr_half", "sid_slow", "sid_adaptive"):
        assert list((reader_folder / "result" / "downstream" / name).glob("states-2.ckpt"))
    assert (reader_folder / "features" / "features" / "a.wav.npy").exists()
    assert (reader_folder / "features" / "times" / "a.wav.npy").exists()
    assert (reader_folder / "layer1" / "features" / "speech.flac.safetensors").exists()
    assert (reader_folder / "model.safetensors").exists()
    for name in ("from_ctm", "from_textgrids", "from_speech"):
        for kind in ("alpha", "boundaries"):
            assert len(list((reader_folder / name / kind).rglob("*.pt"))) == 30
    assert (reader_folder / "tiny" / "checkpoints" / "checkpoint_last.pt").exists()
    assert (reader_folder / "sweeps" / "grid" / "report" / "report.html").exists()
    assert (reader_folder / "s3prl" / "s3prl" / "upstream" / "ofa_wav2vec2" / "hubconf.py").exists()


def test_python_examples(reader_folder):
    """Every Python example runs in its own process and gives consistent shapes."""
    checks = {
        "out.times": "assert out.times.shape[:2] == out.hidden_states[-1].shape[:2]\n"
        "s3prl_ofa.load('checkpoint.safetensors')",
        "S3PRLUpstream": "assert hidden_states[0].shape[1] == int(lengths[0].max()) < 99",
        "overwrite_lambd": "assert hidden.shape[0] == 1 and 20 < hidden.shape[1] < 99",
        "torch.hub": "assert result['hidden_states'][-1].shape[:2] == (2, 99)",
    }
    for code in blocks("python"):
        (check,) = [check for word, check in checks.items() if word in code]
        done = subprocess.run([sys.executable, "-c", f"{code}\n{check}"], capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stderr[-3000:]}"
