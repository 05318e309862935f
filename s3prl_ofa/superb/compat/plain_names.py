"""Checks that a config, an experiment or an option holds only plain names where S3PRL would evaluate its strings.

S3PRL 0.4.18 passes the strings under the keys below to ``eval``, alone or as part of a name (``get_NAME``,
``self.get_NAME_dataloader``), and likewise ``-t`` and the right-hand sides of ``-o``; the tests list every place and
compare their list with S3PRL's sources. It also imports the downstream and looks up the upstream by name, downloads
code with ``--hub huggingface``, and runs the lines of a ``wav.scp`` that end with a bar (diarization).
"""

import argparse
import ast
import builtins
import contextlib
import importlib
import importlib.util
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import torch

from s3prl_ofa.checkpoint.plain_values import plain
from s3prl_ofa.checkpoint.safe_loading import no_code_from_files
from s3prl_ofa.errors import CheckpointError, UsageError, shown
from s3prl_ofa.superb.compat.task_names import S3PRL_DOWNSTREAM

SECTIONS = ("runner", "downstream_expert")  # in every S3PRL config
# keys whose values are evaluated as names, at any depth or by their full path
NAMES = ("select", "metric", "pooling", "pooling_name", "model_type", "module", "agg_module", "utter_module")
NAMES += ("ObjectiveLoss", "optimizer.name", "scheduler.name")
SPLITS = ("runner.train_dataloader", "runner.eval_dataloaders")
SPLIT = re.compile(r"[\w.,+/-]+")  # train-clean-100, dev+test: no brackets, so nothing is called
NUMBER = re.compile(r"[-+]?(math\.inf|math\.nan|[\d.]+(e[-+]?\d+)?)", re.IGNORECASE)
TEXTS = {"upstream_ckpt": "-k", "upstream_model_config": "-g", "upstream_feature_selection": "-s"}
FOLDER = re.compile(r"[\w-]+")
NO_LITERAL = (ValueError, TypeError, SyntaxError, RecursionError, MemoryError)  # what ast raises for other text
# nodes of Python's grammar that text which happens to be Python, such as model.pt or {lambd: 0.9}, does not contain
CODE = (ast.Call, ast.Subscript, ast.Lambda, ast.comprehension, ast.JoinedStr, ast.BoolOp, ast.IfExp, ast.Starred)


@contextlib.contextmanager
def reading_safely() -> Iterator[None]:
    """``no_code_from_files`` for S3PRL, whose checkpoints may also contain its own learning rate schedules."""
    from s3prl import optimizers

    classes = [kind for kind in vars(optimizers).values() if isinstance(kind, type)]
    schedules = [kind for kind in classes if issubclass(kind, optimizers._LRSchedule)]
    # and by their names in checkpoints from before S3PRL was a package
    former = [(kind, f"optimizers.{kind.__name__}") for kind in schedules]
    with torch.serialization.safe_globals([*schedules, *former]), no_code_from_files():
        yield


def check(args: argparse.Namespace, config: Any, where: str = "") -> None:
    """Raises UsageError if the arguments or the config would make S3PRL run code that is not installed here.

    where: prefix of the message, such as the experiment that they come from.
    """
    check_args(args, where)
    check_config(config, where)
    if args.downstream == "diarization":
        check_recordings(config, where)


def check_args(args: argparse.Namespace, where: str) -> None:
    from s3prl import hub

    try:
        values = plain(vars(args))
    except CheckpointError as error:
        raise UsageError(f"{where}the arguments: {error}") from None
    for name, option in TEXTS.items():
        if not isinstance(values.get(name), str | None):
            raise UsageError(f"{where}{option}: text is expected, found {shown(values[name])}")
    if values.get("hub", "torch") != "torch" or values.get("from_hf_hub", False):
        raise UsageError(f"{where}--hub huggingface runs a downloaded program; choose one of S3PRL's upstreams with -u")
    if values.get("upstream") not in hub.options():
        raise UsageError(f"{where}-u {shown(values.get('upstream'))}: S3PRL has no such upstream (--help lists them)")
    check_downstream(values.get("downstream"), where)


def check_downstream(name: Any, where: str = "") -> None:
    folders = importlib.util.find_spec("s3prl.downstream").submodule_search_locations
    if not (isinstance(name, str) and FOLDER.fullmatch(name)) or not any(
        pathlib.Path(folder, name, "expert.py").is_file() for folder in folders
    ):
        raise UsageError(f"{where}-d {shown(name)}: neither {', '.join(S3PRL_DOWNSTREAM)} nor another S3PRL task")


def check_config(config: Any, where: str = "") -> None:
    """Raises UsageError unless it is a mapping of plain values, with plain names where S3PRL evaluates them."""
    if not isinstance(config, dict) or not all(isinstance(config.get(name), dict) for name in SECTIONS):
        wanted = " and ".join(SECTIONS)
        raise UsageError(f"{where}the config must be a mapping with {wanted}, found {shown(config)}")
    try:
        plain(config)
    except CheckpointError as error:
        raise UsageError(f"{where}the config: {error}") from None
    allowed = dict.fromkeys(NAMES, is_name) | dict.fromkeys(SPLITS, is_split) | {"unk_weight": is_number}
    for key, value in entries(config):
        is_allowed = allowed.get(key) or allowed.get(key.rpartition(".")[2])
        for name in value if isinstance(value, list | tuple) else [value]:
            if is_allowed and not is_allowed(name):
                raise UsageError(f"{where}the config's {key}: a plain name is expected, found {shown(name)}")


def check_recordings(config: dict, where: str) -> None:
    """Raises UsageError for commands instead of files in Kaldi tables, which S3PRL would pass to a shell."""
    loaders = (config.get("downstream_expert") or {}).get("loaderrc") or {}
    for folder in (value for key, value in loaders.items() if str(key).endswith("_dir")):
        table = pathlib.Path(str(folder), "wav.scp")
        for line in table.read_text("utf-8", "replace").splitlines() if table.is_file() else ():
            if line.rstrip().endswith("|"):
                raise UsageError(f"{where}{table}: a file is expected in each line, found the command {shown(line)}")


def entries(value: Any, parents: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every key, with its ``parents`` as in ``a.b.c``, and its value, also of mappings in lists."""
    if isinstance(value, list | tuple):
        for item in value:
            yield from entries(item, parents)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f"{parents}{key}", item
            yield from entries(item, f"{parents}{key}.")


def is_name(value: Any) -> bool:
    """Whether this can only name a class or function of S3PRL; S3PRL does not evaluate numbers."""
    if isinstance(value, str):
        # Python treats look-alikes of ASCII letters as these letters
        return value.isascii() and value.isidentifier() and not hasattr(builtins, value)
    return value is None or isinstance(value, int | float)


def is_split(value: Any) -> bool:
    return isinstance(value, str) and SPLIT.fullmatch(value) is not None


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) or isinstance(value, str) and NUMBER.fullmatch(value) is not None


def literal_override(text: str | None) -> str | None:
    """S3PRL's ``-o`` with every right-hand side turned into a literal, so that S3PRL evaluates nothing else.

    Text is quoted: what S3PRL cannot evaluate it uses as text. Raises UsageError if S3PRL could not parse it, or would
    skip or execute a part of it.
    """
    if text is None or text.lower() == "none":
        return text
    return ",,".join(map(literal_option, text.split(",,")))


def literal_option(option: str) -> str:
    option = option.strip()
    key, *values = (part.strip() for part in option.split("="))
    section, *names = key.split(".")
    if len(values) != 1 or not (section == "config" and names or section == "args" and len(names) == 1):
        raise UsageError(
            f"-o {shown(option)}: args.NAME=VALUE or config.NAME.NAME=VALUE is expected, several joined by ,,"
        )
    (value,) = values
    with contextlib.suppress(*NO_LITERAL):
        ast.literal_eval(value)
        return option
    if is_code(value):
        raise UsageError(
            f"-o {shown(option)}: a number, a list or text is expected, not Python code; put text in quotes"
        )
    return f"{key}={value!r}"


def is_code(value: str) -> bool:
    """Whether this is Python that computes something from names, or only from numbers; S3PRL takes the rest as text."""
    with contextlib.suppress(*NO_LITERAL):
        nodes = list(ast.walk(ast.parse(value, mode="eval")))
        return any(isinstance(node, CODE) for node in nodes) or not any(isinstance(node, ast.Name) for node in nodes)
    return False
