"""YAML from users and strangers: a few lines cannot exhaust the machine, and errors are one sentence."""

import itertools
import json

import pytest

from s3prl_ofa.checkpoint.bounded_yaml import read_yaml
from s3prl_ofa.cli import build_command_parser
from s3prl_ofa.errors import UsageError
from s3prl_ofa.extract.store import RESULTS, read_index
from s3prl_ofa.io.output_folder import check_settings
from s3prl_ofa.pretrain.launch import config_path
from s3prl_ofa.superb.compat.plain_names import check_config
from s3prl_ofa.superb.tasks.configs import resolve_config
from s3prl_ofa.superb.upstream.rate_options import read_model_config
from s3prl_ofa.sweep.grid.schema import read_grid

# each line holds the one before nine times: 9 ** 12 values
BOMB = "a: &a [1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in itertools.pairwise("abcdefghijklm")
)


def test_numbers():
    """1e-3 is a number, as in YAML 1.2; so is what PyYAML itself takes for one, and nothing else."""
    found = read_yaml("[1e-3, -2E+5, 1.e3, 1.5e-3, 1.0e-3, 7, .5, e5, 1e, 1e5x, '1e-3', 0x1e3]")
    assert found == [1e-3, -2e5, 1e3, 1.5e-3, 1.0e-3, 7, 0.5, "e5", "1e", "1e5x", "1e-3", 0x1E3]


HOSTILE = {
    "aliases": BOMB,
    "in itself": "&a {lambd: *a}",
    "deep": "[" * 100_000,
    "code": "lambd: !!python/object/apply:os.mkdir [marker]",
    "no date": "lambd: 2020-99-99",
    "no number": "lambd: !!int x",
}
READERS = {
    "-g": lambda path: read_model_config(str(path)),
    "-c": lambda path: resolve_config("sid", str(path), False, {}),
    "grid": read_grid,
    "pretrain --config": lambda path: config_path(build_command_parser("pretrain").parse_args(["--config", str(path)])),
}


# Deep nesting takes seconds.
CASES = [
    pytest.param(attack, reader, marks=[pytest.mark.slow] if attack == "deep" and reader != "-g" else [])
    for attack in HOSTILE
    for reader in READERS
]


@pytest.mark.parametrize(("attack", "reader"), CASES)
def test_refused_in_one_sentence(attack, reader, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.yaml"
    path.write_text(HOSTILE[attack])
    with pytest.raises(UsageError) as caught:
        READERS[reader](path)
    message = str(caught.value)
    assert str(path) in message and "is not YAML: " in message and "\n" not in message and len(message) < 600
    assert [path.name for path in tmp_path.iterdir()] == ["x.yaml"]


def test_aliases_are_taken():
    """What a few lines share stays as it is."""
    assert read_yaml("{a: &a {lr: 0.1}, b: *a}") == {"a": {"lr": 0.1}, "b": {"lr": 0.1}}


def test_a_message_about_a_config_has_an_end():
    values = [1]
    for _ in range(40):
        values = [values] * 9
    with pytest.raises(UsageError, match="must be a mapping") as caught:
        check_config({"runner": values})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("text", ["[" * 100_000, "5", "[1]", "\udcff", ""])
def test_what_extract_left_is_damaged(text, tmp_path):
    """The index's lines that are none are left out; settings that are none are named."""
    for name in ("index.jsonl", "settings.json"):
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape") + b"\n")
    with (tmp_path / "index.jsonl").open("a") as file:
        file.write(json.dumps({"name": "a"}))
    assert read_index(tmp_path) == {"a": {"name": "a"}}
    with pytest.raises(UsageError, match=r"settings.json cannot be read; give --force"):
        check_settings(tmp_path, {"lambd": 0.0}, RESULTS)
