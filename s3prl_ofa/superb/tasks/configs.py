"""S3PRL's configs for SUPERB's tasks, filled with the paths of the user's data."""

import copy
import math
import pathlib
import re
from typing import Any

import yaml

from s3prl_ofa.checkpoint.bounded_yaml import Loader, read_yaml
from s3prl_ofa.errors import UsageError
from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS
from s3prl_ofa.resources import folder
from s3prl_ofa.superb.compat.task_names import ASR, PR, S3PRL_DOWNSTREAM
from s3prl_ofa.superb.tasks.data_roots import PLACEHOLDERS, DataRoots, existing

CTC_TASKS = ("asr", "pr", "sf")
TASKS = {name: task for task, name in reversed(S3PRL_DOWNSTREAM.items())}  # our name of each, by S3PRL's
CONFIGS = "downstream_configs"
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
# the keys of the vocabulary, and of the corpus, whose section has the splits
VOCABULARY = {ASR: "downstream_expert.datarc.dict_path", PR: "downstream_expert.text.vocab_file"}
CORPUS = {ASR: "downstream_expert.datarc.libri_root", PR: "downstream_expert.corpus.path"}
CTC_CORPORA = {"librispeech": "pr", "libriphone": "pr", "snips": "sf"}  # a checkout of S3PRL has others


def resolve_config(downstream: str, config: str | None, mini: bool, roots: dict[str, str | None]) -> dict[str, Any]:
    """S3PRL's whole config (runner, optimizer, downstream_expert, ...) of a task, ready to run.

    downstream: one of S3PRL_DOWNSTREAM, or S3PRL's name of it. config: the path of a YAML file; None for ours, the
    small one with ``mini``. ``${name}`` in it is filled from ``roots`` (see ``DataRoots``), and the path of its
    vocabulary becomes absolute (see ``vocabulary``).
    Raises UsageError for an unknown task, a missing or unreadable config and missing data, naming the option.
    """
    task = TASKS.get(downstream, downstream)
    if config is None and task not in S3PRL_DOWNSTREAM:
        raise UsageError(f"there is a config for {', '.join(S3PRL_DOWNSTREAM)}, found {downstream}: give yours with -c")
    name = f"{task}{'_mini' if mini else ''}.yaml"
    path = pathlib.Path(config).expanduser() if config else folder(CONFIGS) / name
    filled = fill(read_config(path), DataRoots(roots, mini), path)
    if not isinstance(expert := filled.get("downstream_expert") or {}, dict):
        raise UsageError(f"{path}: downstream_expert must be a mapping, found {expert!r}")
    if task == "asr":
        mapping_at(filled, "downstream_expert", "datarc").setdefault("dict_path", "char.dict")
    for section, key in (section_of(filled, where) for where in VOCABULARY.values()):
        if key in section:
            section[key] = vocabulary(section[key], path.parent, roots)
    return filled


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """The content of a config. Raises UsageError if it cannot be read or is not a YAML mapping."""
    config = read_yaml_file(path, "a config")
    if not isinstance(config, dict):
        raise UsageError(f"{path} must hold a mapping with runner, optimizer and downstream_expert")
    return config


def read_yaml_file(path: pathlib.Path, expected: str, loader: type[yaml.SafeLoader] = Loader) -> Any:
    """The plain values in a file. Raises UsageError if it cannot be read or is not YAML."""
    try:
        return read_yaml(path.read_text("utf-8"), loader)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); {expected} is expected") from None
    except ValueError as error:
        raise UsageError(f"{path} is not YAML: {error}") from None


def fill(value: Any, roots: DataRoots, path: pathlib.Path) -> Any:
    """The value with every ``${name}`` replaced; a string that consists of one may become a list."""
    if isinstance(value, dict):
        return {key: fill(item, roots, path) for key, item in value.items()}
    if isinstance(value, list):
        return [fill(item, roots, path) for item in value]
    if not isinstance(value, str):
        return value
    for name in PLACEHOLDER.findall(value):
        if name not in PLACEHOLDERS:
            raise UsageError(f"{path} holds ${{{name}}}; the names that can be filled are {', '.join(PLACEHOLDERS)}")
    if whole := PLACEHOLDER.fullmatch(value):
        return roots.value(whole[1])
    return PLACEHOLDER.sub(lambda match: str(roots.value(match[1])), value)


def vocabulary(name: str, beside: pathlib.Path, roots: dict[str, str | None]) -> str:
    """The absolute path of the vocabulary that an option gives, or else of the config's.

    A file beside the config comes first, so that one in the working folder never takes the place of ours. S3PRL's own
    configs give a path relative to a checkout. A vocabulary below ``prepared`` replaces ours of that name.
    """
    if roots.get("vocabulary"):
        return existing(roots["vocabulary"], "--vocabulary")
    path = pathlib.Path(name).expanduser()
    candidates = [beside / path, path, folder(CONFIGS) / path.name]
    found = next((candidate.resolve() for candidate in candidates if candidate.is_file()), None)
    if found is None:
        raise UsageError(f"there is no vocabulary {name}, neither here nor in {beside}")
    if found.parent == folder(CONFIGS).resolve() and roots.get("prepared"):
        prepared = pathlib.Path(roots["prepared"]).expanduser().resolve() / found.name
        return str(prepared if prepared.is_file() else found)
    return str(found)


def mapping_at(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The mapping below these keys of a config; an empty one where there is none."""
    found: Any = config
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def section_of(config: dict[str, Any], where: str) -> tuple[dict[str, Any], str]:
    """The mapping that holds a key such as ``a.b.c``, or an empty one, and the last part of the key."""
    *parents, key = where.split(".")
    return mapping_at(config, *parents), key


def splits_of(config: dict[str, Any], mode: str, evaluated: str) -> list[str]:
    """The splits that a training reads, or the one that an evaluation reads; inference reads none."""
    runner = config.get("runner") or {}
    also = runner.get("eval_dataloaders") or []
    training = [runner.get("train_dataloader", "train"), *([also] if isinstance(also, str) else also)]
    return {"train": training, "evaluate": [evaluated]}.get(mode, [])


def task_of(downstream: str, config: dict[str, Any]) -> str | None:
    """Our name of the SUPERB task that S3PRL's ``downstream`` is with this config; None for any other task.

    S3PRL's ctc is several tasks, depending on its corpus.
    """
    corpus = str(mapping_at(config, "downstream_expert", "corpus").get("name")).lower()
    return CTC_CORPORA.get(corpus) if downstream == PR else TASKS.get(downstream)


def scale_specaug(config: dict[str, Any], frame_period_ms: float) -> dict[str, Any]:
    """The config with SpecAug's widths along time converted from frames of 20 ms to frames of ``frame_period_ms``.

    A mask then covers the same duration at any rate, and at least one frame: 40 frames of 20 ms become 10 of 80 ms.
    With ``repeat: N`` the period is that of the repeated frames.
    """
    scaled = copy.deepcopy(config)
    specaug = scaled.get("specaug")
    if not specaug:
        return scaled
    ratio = MIN_FRAME_PERIOD_MS / frame_period_ms
    if "time_warp_window" in specaug:
        specaug["time_warp_window"] = max(1, round(specaug["time_warp_window"] * ratio))
    if "time_mask_width_range" in specaug:
        low, high = specaug["time_mask_width_range"]
        # S3PRL draws from low up to, but excluding, high
        low = math.floor(low * ratio)
        specaug["time_mask_width_range"] = [low, max(low + 2, round((high - 1) * ratio) + 1)]
    return scaled
