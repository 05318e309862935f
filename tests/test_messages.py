"""Every error that a user can meet, with its text: what was found, what was expected, what to do.

messages.txt has them all, below the file that raises them, as a user sees them or with the source of what is filled in
in braces; and below the name of a library those that it words. A command line or an expression above a message leads to
it, after ``with FILE: CONTENT`` wrote its files; the tests of the rooms raise the others.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
import yaml
from paths import ROOT
from pretraining import write_config

from s3prl_ofa import ModelConfig, OFAWav2Vec2, cli, load
from s3prl_ofa.checkpoint import checkpoint_path
from s3prl_ofa.model.cif import cif
from s3prl_ofa.resources import AUDIO
from s3prl_ofa.superb.compat.link import CHECKOUT_FILES

PACKAGE = ROOT / "s3prl_ofa"
TABLE = ROOT / "tests" / "messages.txt"
# errors that reach a user; the text of others, such as KeyError, is for developers
USER_FACING = {
    "ArgumentTypeError",
    "AudioError",
    "CheckpointError",
    "FailedRun",
    "FileNotFoundError",
    "GuidanceError",
    "NoLocks",
    "UsageError",
    "ValueError",
}


class Message(NamedTuple):
    """What a raise statement says. parts: pieces of text, and the source of what is filled in between."""

    module: str
    line: int
    parts: list[tuple[str, bool]]  # text or source, whether it is text

    @property
    def text(self) -> str:
        return "".join(part if is_text else f"{{{part}}}" for part, is_text in self.parts)

    def fits(self, line: str) -> bool:
        pattern = "".join(re.escape(part) if is_text else ".*" for part, is_text in self.parts)
        return re.fullmatch(pattern, line) is not None


def parts_of(node: ast.expr) -> list[tuple[str, bool]]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return [(node.value, True)]
    if isinstance(node, ast.JoinedStr):
        return [part for value in node.values for part in parts_of(value)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return parts_of(node.left) + parts_of(node.right)
    return [(ast.unparse(node.value if isinstance(node, ast.FormattedValue) else node), False)]


def raised() -> Iterator[Message]:
    """The errors with a text of their own; those that pass on the text of another error have none."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args):
                continue
            message = Message(path.relative_to(PACKAGE).as_posix(), node.lineno, parts_of(node.exc.args[0]))
            has_text = any(is_text and re.search("[a-z]{3}", part) for part, is_text in message.parts)
            if ast.unparse(node.exc.func).rpartition(".")[2] in USER_FACING and has_text:
                yield message


RAISED = list(raised())


class Attempt(NamedTuple):
    """What leads to a message: a line of the table, and the content of the files that it needs by their names."""

    line: str
    files: dict[str, str]
    message: str


def table() -> tuple[dict[str, list[str]], list[Attempt]]:
    """The messages of each file or library, and what leads to them."""
    messages: dict[str, list[str]] = {}
    attempts: list[Attempt] = []
    line_before, files = "", {}
    for line in TABLE.read_text("utf-8").splitlines():
        if line.startswith("# "):
            lines = messages.setdefault(line[2:], [])
        elif line.startswith("with "):
            name, _, content = line.removeprefix("with ").partition(":")
            files[name] = content.strip().encode().decode("unicode_escape")
        elif line.startswith(("$ ", ">>> ")):
            line_before = line
        elif line:
            lines.append(line)
            if line_before:
                attempts.append(Attempt(line_before, files, line))
                line_before, files = "", {}
    return messages, attempts


MESSAGES, ATTEMPTS = table()


def attempts(kind: str) -> pytest.MarkDecorator:
    found = [attempt for attempt in ATTEMPTS if attempt.line.startswith(kind)]
    return pytest.mark.parametrize("attempt", found, ids=[attempt.line for attempt in found])


def test_every_message_is_in_the_table():
    """A new or changed one is to be read once more there, as a user would."""
    missing = [
        f"{message.module}:{message.line}: {message.text}"
        for message in RAISED
        if not any(map(message.fits, MESSAGES.get(message.module, [])))
    ]
    assert not missing, "not in tests/messages.txt:\n" + "\n".join(missing)


def test_every_line_of_the_table_is_raised():
    unknown = [
        f"{module}: {line}"
        for module, lines in MESSAGES.items()
        for line in lines
        if module.endswith(".py") and not any(message.module == module and message.fits(line) for message in RAISED)
    ]
    assert not unknown, "no longer raised, see tests/messages.txt:\n" + "\n".join(unknown)


def test_every_message_is_one_sentence():
    """It follows ``error:``, so it has no full stop at its end, and is on one line."""
    for message in RAISED:
        assert "\n" not in message.text and not re.search(r"[^.]\.$", message.text), message


GRID = {
    "checkpoints": {"tiny": str(checkpoint_path("tiny"))},
    "data": {"voxceleb1": "VoxCeleb1"},
    "tasks": {"sid": {"steps": 2}},
    "rates": {"lambd": 0},
    "mini": True,
}


@pytest.fixture
def folder_of_a_user(tmp_path, monkeypatch, make_wave, saved_plain):
    """A second of speech, data of a pretraining, files that are something else than asked for, and an empty folder."""
    monkeypatch.chdir(tmp_path)
    soundfile.write("speech.wav", make_wave(1.0), 16_000)
    soundfile.write("short.wav", make_wave(0.02), 16_000)
    manifest = f"{tmp_path}\nspeech.wav\t16000\n"
    for name, content in {
        "empty.pt": "",
        "text.pt": "no checkpoint",
        "pointer.pt": "version https://git-lfs.github.com/spec/v1\n",
        "manifest.tsv": manifest,
        "data/train.tsv": manifest,
        "data/valid.tsv": manifest,
        "list.yaml": "[1, 2]",
        **{f"checkout/s3prl/{name}": "from s3prl.upstream.apc.hubconf import *\n" for name in CHECKOUT_FILES},
    }.items():
        write(tmp_path / name, content)
    write_config(tmp_path / "pretrain.yaml")
    (tmp_path / "folder").mkdir()
    (tmp_path / "VoxCeleb1").symlink_to(AUDIO)
    (tmp_path / "plain.safetensors").hardlink_to(saved_plain)


def write(path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def unquoted(text: str) -> str:
    """argparse quotes the values to choose from in some versions of Python."""
    return text.replace("'", "") if "invalid choice" in text else text


@attempts("$ ")
def test_commands_say_so(attempt, folder_of_a_user, tmp_path, capsys, monkeypatch):
    """One line on stderr, status 2. Before the message the file may be named, after it the way to help.

    grid.yaml is a good grid, changed by what the table says."""
    for name, content in attempt.files.items():
        if name == "grid.yaml":
            content = yaml.safe_dump({**GRID, **yaml.safe_load(content)})
        write(tmp_path / name, content)
    words = shlex.split(attempt.line.removeprefix("$ "))
    while words[0] != "s3prl-ofa":
        monkeypatch.setenv(*words.pop(0).split("="))
    assert cli.main(words[1:]) == 2
    said = capsys.readouterr().err.splitlines()[-1].replace(f"{tmp_path}/", "").replace(str(AUDIO), "VoxCeleb1")
    expected = re.escape(unquoted(attempt.message))
    assert re.fullmatch(
        rf"s3prl-ofa( \w+)?: error: (.*[:/ ])?{expected}( \(see s3prl-ofa .*--help\))?", unquoted(said)
    ), said


@pytest.fixture(scope="module")
def plain():
    """A wav2vec 2.0 without a compressor."""
    return OFAWav2Vec2(ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1))


@pytest.fixture(scope="module")
def saved_plain(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    plain.save(path)
    return path


@pytest.fixture(scope="module")
def names(plain):
    """What the expressions use."""
    others = {"ModelConfig": ModelConfig, "cif": cif, "load": load, "np": np, "torch": torch}
    return {"model": load("tiny"), "plain": plain, "wave": np.zeros(16_000, "float32"), **others}


@attempts(">>> ")
def test_expressions_say_so(attempt, names):
    with pytest.raises(ValueError) as error:
        eval(attempt.line.removeprefix(">>> "), {**names})
    assert str(error.value) == attempt.message
