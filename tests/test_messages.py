"""Every error that a user can meet, with its text: what was found, what was expected, what to do.

messages.txt has them all, as a user sees them, below the file that raises them or the name of the library that words
them. Above each message is what provokes it: a command line, or an expression in the module's namespace and that of
``names``, after ``with FILE: TEXT`` or ``with FILE = EXPRESSION`` wrote files and ``uninstalled PACKAGE`` hid packages.
If this is not possible here, ``! REASON`` says why, or which test raises the message.
"""

import argparse
import ast
import builtins
import dataclasses
import functools
import importlib
import io
import json
import pathlib
import re
import shlex
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import hostile_files
import hostile_pickles
import numpy as np
import pretraining
import pytest
import safetensors.torch
import soundfile
import superb_corpora
import sweep_rows
import torch
import yaml
from models import GOLDEN_CONFIG
from paths import REF_TINY, ROOT

from s3prl_ofa import ModelConfig, OFAWav2Vec2, cli, load
from s3prl_ofa.arguments.parser import one_line
from s3prl_ofa.checkpoint import checkpoint_path, read_checkpoint
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
    """What leads to a message: a line of the table, and the ``with`` and ``uninstalled`` lines above it."""

    line: str
    before: list[str]
    module: str
    message: str


def table() -> tuple[dict[str, list[str]], list[Attempt]]:
    """The messages of each file or library, and what leads to them."""
    messages: dict[str, list[str]] = {}
    attempts: list[Attempt] = []
    module, before = "", []
    for line in TABLE.read_text("utf-8").splitlines():
        if line.startswith("# "):
            module = line[2:]
            messages[module] = []
        elif line.startswith(("with ", "uninstalled ", "$ ", ">>> ", "! ")):
            before.append(line)
        elif line:
            messages[module].append(line)
            attempts.append(Attempt(before[-1] if before else "", before[:-1], module, line))
            before = []
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


def test_every_message_is_provoked_or_has_a_reason():
    missing = [attempt.message for attempt in ATTEMPTS if not attempt.line.startswith(("$ ", ">>> ", "! "))]
    assert not missing, "nothing leads to them in tests/messages.txt:\n" + "\n".join(missing)
    for attempt in ATTEMPTS:
        for path, name in re.findall(r"(tests/\S+\.py)::(\w+)", attempt.line if attempt.line[0] == "!" else ""):
            assert f"def {name}(" in (ROOT / path).read_text("utf-8"), attempt.line


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
    pretraining.write_config(tmp_path / "pretrain.yaml")
    (tmp_path / "folder").mkdir()
    (tmp_path / "VoxCeleb1").symlink_to(AUDIO)
    (tmp_path / "plain.safetensors").hardlink_to(saved_plain)


def write(path: pathlib.Path, content: Any) -> None:
    """Text and bytes as they are, a wave or (wave, rate) as audio, a model, and anything else as a checkpoint."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str | bytes):
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    elif isinstance(content, np.ndarray | tuple):
        wave, rate = content if isinstance(content, tuple) else (content, 16_000)
        soundfile.write(path, wave, rate, subtype="FLOAT" if path.suffix == ".wav" else None)
    elif isinstance(content, OFAWav2Vec2):
        content.save(path)
    elif path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)


def prepare(attempt: Attempt, folder: pathlib.Path, values: dict[str, Any], monkeypatch) -> None:
    """Writes the files of ``with`` and hides the packages of ``uninstalled``. grid.yaml: what differs from GRID."""
    for line in attempt.before:
        if line.startswith("uninstalled "):
            hide(line.removeprefix("uninstalled "), attempt.module, monkeypatch)
            continue
        name, kind, content = re.fullmatch(r"with (\S+?)(:| =) ?(.*)", line).groups()
        content = content.encode().decode("unicode_escape") if kind == ":" else eval(content, {**values})
        if name == "grid.yaml":
            content = yaml.safe_dump({**GRID, **yaml.safe_load(content)})
        write(folder / name, content)


def hide(package: str, module: str, monkeypatch) -> None:
    """The package is missing, and ``module`` is imported again if it is needed."""
    real = builtins.__import__

    def imported(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", imported)
    monkeypatch.setitem(sys.modules, package, None)  # for importlib
    monkeypatch.delitem(sys.modules, dotted(module), raising=False)


def dotted(module: str) -> str:
    return "s3prl_ofa." + module.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def unquoted(text: str) -> str:
    """argparse quotes the values to choose from in some versions of Python."""
    return text.replace("'", "") if "invalid choice" in text else text


@attempts("$ ")
def test_commands_say_so(attempt, folder_of_a_user, names, tmp_path, capsys, monkeypatch):
    """One line on stderr, status 2."""
    prepare(attempt, tmp_path, names(attempt.module), monkeypatch)
    words = shlex.split(attempt.line.removeprefix("$ "))
    while words[0] != "s3prl-ofa":
        monkeypatch.setenv(*words.pop(0).split("="))
    assert cli.main(words[1:]) == 2
    said = re.findall(r"s3prl-ofa[\w ]*: error: (.*)", capsys.readouterr().err)
    assert_says(said[-1], attempt, tmp_path)


def assert_says(said: str, attempt: Attempt, folder: pathlib.Path) -> None:
    """Before the message there may be the name of a file, or what it belongs to, and after it the way to help."""
    for path, name in ((folder, ""), (AUDIO, "VoxCeleb1/"), (ROOT, "")):
        said = said.replace(f"{path}/", name).replace(str(path), name.rstrip("/"))
    expected = re.escape(unquoted(attempt.message))
    assert re.fullmatch(rf"(.*[:/ ])?{expected}( \(see s3prl-ofa .*--help\))?", unquoted(said)), said


@pytest.fixture(scope="module")
def plain():
    """A wav2vec 2.0 without a compressor."""
    return OFAWav2Vec2(ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1))


@pytest.fixture(scope="module")
def saved_plain(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "plain.safetensors"
    plain.save(path)
    return path


def fairseq(weights: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """The content of the reference's checkpoint with other weights and settings of its model."""
    whole = torch.load(REF_TINY, weights_only=True)
    cfg = {"model": {**whole["cfg"]["model"], **settings}, "task": whole["cfg"]["task"]}
    return {"cfg": cfg, "model": {**whole["model"], **(weights or {})}}


def ours(metadata: dict[str, str] | None = None, **weights: torch.Tensor) -> bytes:
    """A file of our format with these metadata and weights."""
    known = {"format": "s3prl-ofa 1", "config": json.dumps(GOLDEN_CONFIG.to_dict())}
    return safetensors.torch.save(weights or {"mask_emb": torch.zeros(1)}, {**known, **(metadata or {})})


def zipped(**records: bytes) -> bytes:
    """The reference's checkpoint, an archive, with these records."""
    found = hostile_files.records_of(REF_TINY.read_bytes())
    return hostile_files.rebuilt(found | {f"archive/{name}": data for name, data in records.items()})


def sound(kind: str) -> bytes:
    """A second of noise in an audio format."""
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).uniform(-0.1, 0.1, 16_000), 16_000, format=kind)
    return file.getvalue()


def trained(**states: Any) -> dict[str, Any]:
    """The content of a checkpoint of run_downstream."""
    return {"Args": {}, "Config": {}, "Featurizer": {"x": torch.zeros(1)}, "Downstream": {}, **states}


@pytest.fixture(scope="module")
def names(plain):
    """A function (module) -> what the expressions below this heading of the table may use."""
    common = {
        item.__name__: item for item in (fairseq, ours, sound, trained, zipped, load, read_checkpoint, checkpoint_path)
    }
    common |= {item.__name__: item for item in (OFAWav2Vec2, ModelConfig, argparse, dataclasses, importlib, json)}
    common |= {item.__name__: item for item in (hostile_files, hostile_pickles, pathlib, pretraining, safetensors)}
    common |= {item.__name__: item for item in (superb_corpora, sweep_rows, torch)}
    common |= {"np": np, "plain": plain, "wave": np.zeros(16_000, "float32"), "model": load("tiny")}
    common |= {"pickles": functools.cache(hostile_pickles.pickles), "legacy": functools.cache(hostile_files.legacy)}

    def of(module: str) -> dict[str, Any]:
        if not module.endswith(".py"):
            return common
        return {**vars(importlib.import_module(dotted(module))), **common}

    return of


@attempts(">>> ")
def test_expressions_say_so(attempt, folder_of_a_user, names, tmp_path, monkeypatch):
    values = names(attempt.module)
    prepare(attempt, tmp_path, values, monkeypatch)
    with pytest.raises(Exception) as error:
        eval(attempt.line.removeprefix(">>> "), {**values})
    assert error.type.__name__ in USER_FACING, error.value
    assert_says(one_line(error.value), attempt, tmp_path)
