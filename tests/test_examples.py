"""Every example of the README and of the documentation runs.

The bash and Python blocks of a page run in order in one folder, where everything that they name exists: checkpoint.pt,
checkpoint_582_5000.pt, wav2vec_small.pt, speech.flac, audio, LibriSpeech, phones.ctm.gz and textgrids (its alignments),
VoxCeleb1, corpora (of SUPERB's other tasks), speakers and my_corpus.tsv (corpora of one's own), s3prl (a source
checkout), s3prl-ofa (this repository) and s3prl_ofa/demo.
Comments before a block can change that: ``<!-- test: skip, REASON -->`` leaves it out, ``<!-- test: append TEXT -->``
adds TEXT to each of its commands, ``<!-- test: replace THIS -> THAT -->`` puts THAT where it says THIS; the last two
make it short.
"""

import gzip
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import pytest
import soundfile
import torch
import yaml
from guidance_data import write_textgrid
from paths import DEMO, ROOT
from pretraining import tiny_model
from superb_corpora import make_corpora

from s3prl_ofa.io.audio import SAMPLE_RATE, load_audio
from s3prl_ofa.superb.compat.link import CHECKOUT_FILES

BLOCK = re.compile(
    r"(?P<orders>(?:<!-- test: [^`]*? -->\n)*)```(?P<language>bash|python)\n(?P<code>.*?)```",
    re.S,
)
ORDER = re.compile(r"<!-- test: (skip|append|replace)[ ,]+(.*?) -->\n", re.S)
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md")))}
DEMO_AUDIO = DEMO / "audio"
UTTERANCES = 30  # in LibriSpeech
LIBRISPEECH_SPLITS = {"train": "train-clean-100", "dev": "dev-clean", "test": "test-clean"}


class Block(NamedTuple):
    """An example as it is to be run."""

    language: str
    code: str


def blocks(page: str) -> list[Block]:
    found = []
    for match in BLOCK.finditer(PAGES[page].read_text("utf-8")):
        code = match["code"]
        for order, text in ORDER.findall(match["orders"]):
            if order == "skip":
                break
            if order == "append":
                code = re.sub(r"(?m)$(?<!\n)", f" {text}", code.rstrip("\n")) + "\n"
            if order == "replace":
                this, that = text.split(" -> ")
                assert this in code, f"{this} is not in the example"
                code = code.replace(this, that)
        else:
            found.append(Block(match["language"], code))
    return found


@pytest.fixture
def reader_folder(tmp_path, golden_checkpoint, audio_folder, monkeypatch) -> pathlib.Path:
    """What a reader has at hand."""
    for name in ("checkpoint.pt", "checkpoint_582_5000.pt"):
        shutil.copy(golden_checkpoint, tmp_path / name)
    shutil.copy(audio_folder / "a.flac", tmp_path / "speech.flac")
    (tmp_path / "VoxCeleb1").symlink_to(DEMO_AUDIO)
    (tmp_path / "s3prl-ofa").symlink_to(ROOT)
    (tmp_path / "s3prl_ofa").mkdir()
    (tmp_path / "s3prl_ofa" / "demo").symlink_to(DEMO)
    make_librispeech(tmp_path / "LibriSpeech")
    make_alignments(tmp_path)
    make_own_corpora(tmp_path)
    make_corpora(tmp_path / "corpora")
    (tmp_path / "corpora" / "VoxCeleb1").rename(tmp_path / "corpora" / "identification")
    (tmp_path / "corpora" / "verification").rename(tmp_path / "corpora" / "VoxCeleb1")
    make_wav2vec_small(tmp_path)
    installed = pathlib.Path(importlib.util.find_spec("s3prl").origin).parent
    for name in ("__init__.py", *CHECKOUT_FILES):
        target = tmp_path / "s3prl" / "s3prl" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(installed / name, target)
    (tmp_path / "bin").mkdir()
    modules = {"s3prl-ofa": "-m s3prl_ofa", "fairseq-hydra-train": "-m fairseq_cli.hydra_train", "python": ""}
    for name, module in modules.items():
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" {module} "$@"\n')
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_wav2vec_small(folder: pathlib.Path) -> None:
    """Random weights of the size that ofa_tiny has."""
    config = yaml.safe_load((ROOT / "s3prl_ofa" / "pretrain" / "configs" / "ofa_tiny.yaml").read_text("utf-8"))
    weights = tiny_model(**config["model"]).state_dict()
    state = {"cfg": {name: config[name] for name in ("model", "task")}, "model": weights}
    torch.save(state, folder / "wav2vec_small.pt")


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


def make_own_corpora(folder: pathlib.Path) -> None:
    """speakers, ROOT/SPEAKER/FILE; and my_corpus.tsv, lines of split, speaker, audio file and text."""
    (folder / "speakers").mkdir()
    lines = []
    for line in (DEMO_AUDIO / "transcripts.tsv").read_text("utf-8").splitlines():
        name, text = line.split("\t")
        speaker, split, number = name.split("/")
        (source,) = DEMO_AUDIO.glob(f"*/wav/{name}")
        target = folder / "speakers" / speaker / f"{split}-{number}"
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(source)
        if speaker in ("id10001", "id10002"):
            lines.append(f"{split}\t{speaker}\t{target}\t{re.sub(r'[^A-Za-z ]', '', text)}\n")
    (folder / "my_corpus.tsv").write_text("".join(lines), "utf-8")


def test_few_examples_are_skipped():
    """Only what needs a cluster or the Hub is left out; the make targets are tested by running them."""
    for page, path in PAGES.items():
        orders = ORDER.findall(path.read_text("utf-8"))
        assert len(orders) == path.read_text("utf-8").count("<!-- test:"), page
        skipped = {text for order, text in orders if order == "skip"}
        assert skipped <= {"needs a cluster", "needs eight GPUs", "needs the Hugging Face Hub"}, page
    assert {block.language for block in blocks("README.md")} == {"bash", "python"}


def test_append_reaches_every_command():
    """The mechanism that shortens examples adds to each line of a block."""
    (shortened,) = [block.code for block in blocks("docs/how-to/superb.md") if "-n asr_40ms" in block.code]
    assert len(shortened.splitlines()) == 9
    assert all(line.endswith("log_step=2") for line in shortened.splitlines())


# what must be there after a page's examples, as patterns
LEFT_BEHIND = {
    "README.md": [
        "features/index.jsonl",
        "result/downstream/pr_40ms/measured_test.json",
        "sweeps/grid/report/report.html",
        "base/checkpoints/checkpoint_last.pt",
    ],
    "docs/get-started.md": ["sweeps/first/report/report.html"],
    "docs/how-to/features.md": [
        "features/features/a.wav.npy",
        "features/times/a.wav.npy",
        "layer1/features/speech.flac.safetensors",
    ],
    "docs/how-to/guidance.md": [
        f"{name}/{kind}/**/*.pt"
        for name in ("from_ctm", "from_textgrids", "from_speech")
        for kind in ("alpha", "boundaries")
    ],
    "docs/how-to/hugging-face.md": ["ofa_half/model.safetensors"],
    "docs/how-to/learned-rate.md": ["result/downstream/pr_adaptive/states-2.ckpt"],
    "docs/how-to/own-corpus.md": [f"result/downstream/{name}/states-2.ckpt" for name in ("my_speakers", "my_asr")],
    "docs/how-to/pretraining.md": ["base_features/index.jsonl", "tiny/checkpoints/checkpoint_last.pt"],
    "docs/how-to/reference-checkpoint.md": ["ofa_base.safetensors", "ofa_base_16.safetensors"],
    "docs/how-to/superb.md": [
        *(f"result/downstream/{name}/states-2.ckpt" for name in ("asr_40ms", "pr_half", "sid_slow")),
        *(f"result/downstream/{task}_half/states-2.ckpt" for task in ("ks", "ic", "sf", "asv", "sd", "er")),
        *(f"result/downstream/qbe_2/measured_{split}.json" for split in ("dev", "test")),
        "result/downstream/sid_slow/measured_test.json",
        "speakers/predictions.jsonl",
    ],
    "docs/how-to/sweeps.md": ["sweeps/grid/report/report.html"],
}


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_examples(page, reader_folder):
    """Every example ends well, in the order of the page, and leaves what the page says."""
    for language, code in blocks(page):
        command = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        if "-m evaluate -e result/downstream/sid_slow" in code:
            assert done.stdout.count("test acc: ") == code.count("-m evaluate -e result/downstream/sid_slow")
        if "s3prl-ofa info" in code:
            assert "mean alpha" in done.stdout or '"mean_alpha"' in done.stdout
        if "s3prl-ofa link" in code:
            assert (reader_folder / "s3prl" / "s3prl" / "upstream" / "ofa_wav2vec2" / "hubconf.py").exists()
    for pattern in LEFT_BEHIND.get(page, ()):
        found = list(reader_folder.glob(pattern))
        assert len(found) == UTTERANCES if "**" in pattern else found, pattern
