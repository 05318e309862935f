"""The data of an existing experiment: where it is now, and which splits can be trained and evaluated on."""

import logging
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import yaml

from s3prl_ofa.errors import UsageError
from s3prl_ofa.resources import folder
from s3prl_ofa.superb.compat.plain_names import entries
from s3prl_ofa.superb.compat.task_names import ASR
from s3prl_ofa.superb.tasks import configs
from s3prl_ofa.superb.tasks.configs import CONFIGS, VOCABULARY, section_of
from s3prl_ofa.superb.tasks.corpora import CORPORA, split_folder
from s3prl_ofa.superb.tasks.data_roots import FOUND_BELOW, SPLITS, DataRoots
from s3prl_ofa.superb.tasks.labels import SLOTS, STORED

logger = logging.getLogger(__name__)


# the possible values of -t for tasks whose splits are not folders
EVALUATION_SPLITS = {**dict.fromkeys(("ks", "ic", "sf", "sd", "er"), SPLITS), "asv": ("test",), "qbe": ("dev", "test")}


def refill(
    downstream: str, config: dict[str, Any], given: dict[str, str | None], override: str | None, read: bool = True
) -> None:
    """Changes the paths in an experiment's config to where its data is now.

    downstream: S3PRL's name of a task that ``task_of`` knows. given: as for DataRoots; it overrides the config.
    override: S3PRL's ``-o``, which is applied later and takes precedence. read: whether the run reads the corpus.
    Raises UsageError naming the option if the corpus is neither given nor where the config says.
    """
    given = dict(given)
    for where, name in placeholders(configs.task_of(downstream, config)):
        section, key = section_of(config, where)
        is_stored = name == "slots" and SLOTS in config["downstream_expert"]
        if key not in section or overridden(where, override) or is_stored:
            continue
        stored = section[key]
        options = ("splits",) if name in SPLITS else (name, "prepared", FOUND_BELOW.get(name))
        if name in CORPORA:
            options = (name,)
        asked = any(given.get(option) for option in options)
        if asked or read and name not in SPLITS and missing(stored):
            try:
                section[key] = DataRoots(given, False).value(name)
            except UsageError as error:
                gone = f"the experiment's {', '.join(parts(stored))} is no longer there"
                raise error if asked else UsageError(f"{gone}: {error}") from None
        if name in CORPORA:  # later placeholders are filled from these folders
            given[name] = section[key]
        if section[key] != stored:
            logger.info("%s: %s in place of %s", where, section[key], stored)
    if STORED not in (config.get("downstream_expert") or {}):  # experiments from before vocabularies were stored
        for where in VOCABULARY.values():
            section, key = section_of(config, where)
            if key in section and missing(section[key]) and not overridden(where, override):
                section[key] = moved_vocabulary(section[key], where)


def placeholders(task: str) -> Iterator[tuple[str, str]]:
    """Yields the key and name of each placeholder, such as ("downstream_expert.datarc.libri_root", "librispeech")."""
    for where, value in entries(yaml.safe_load((folder(CONFIGS) / f"{task}.yaml").read_text("utf-8"))):
        if isinstance(value, str) and (found := configs.PLACEHOLDER.fullmatch(value)):
            yield where, found[1]


def overridden(where: str, override: str | None) -> bool:
    return re.search(rf"(^|,,)\s*config\.{re.escape(where)}\s*=", override or "") is not None


def parts(value: Any) -> list[str]:
    """One name or several, as S3PRL takes them."""
    return [str(part) for part in (value if isinstance(value, list) else [value])]


def missing(value: Any) -> bool:
    """Whether a path, or one of several, does not exist."""
    return not all(os.path.exists(path) for path in parts(value))


def moved_vocabulary(stored: Any, where: str) -> str:
    """Our vocabulary, to replace the same one of another installation or S3PRL's of that name."""
    path = pathlib.Path(str(stored))
    ours = folder(CONFIGS) / path.name
    if ours.is_file() and (not path.is_absolute() or path.parent.name == CONFIGS):
        return str(ours)
    raise UsageError(
        f"the experiment's vocabulary {stored} is no longer there: give another with -o config.{where}=FILE"
    )


def check_splits(downstream: str, config: dict[str, Any], mode: str, evaluated: str) -> None:
    """Raises UsageError if a split that a training or an evaluation (``-t``) of a task reads does not exist.

    For asr and pr ``-t`` may also be any split of LibriSpeech, or several joined by +, which are added to the config.
    For inference it is a file.
    """
    if mode == "inference":
        if not os.path.isfile(evaluated):
            raise UsageError(f"-m inference -t {evaluated}: there is no such file")
        return
    task = configs.task_of(downstream, config)
    section, key = section_of(config, configs.CORPUS.get(downstream, ""))
    if task in EVALUATION_SPLITS and mode == "evaluate" and evaluated not in EVALUATION_SPLITS[task]:
        raise UsageError(f"-t {evaluated}: {task} has {', '.join(EVALUATION_SPLITS[task])}")
    if task not in ("asr", "pr") or key not in section:  # without the key, tables name the files
        return
    for split in configs.splits_of(config, mode, evaluated):
        if mode == "evaluate" and split == "train" and split in section:
            raise UsageError(
                f"-t train would score the batches of training, in which S3PRL leaves out or repeats utterances: "
                f"-t {'+'.join(parts(section['train']))} scores each once"
            )
        named = [k for k, value in section.items() if k in SPLITS or isinstance(value, list) and k != "lexicon"]
        if split not in named:
            section[split] = split.split("+")
        root, bucket = pathlib.Path(str(section[key])), pathlib.Path(str(section.get("bucket_file")))
        for part in parts(section[split]):
            split_folder(root, part, f", and the config {', '.join(named)}")
            if downstream == ASR and not (bucket / f"{part}.csv").is_file():  # S3PRL would leave it out with a warning
                make = f"s3prl-ofa prepare bucket --librispeech {root} --splits {part} --out {bucket.parent}"
                raise UsageError(f"{bucket} holds no {part}.csv; `{make}` makes it")
