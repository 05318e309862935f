"""SUPERB's three tasks in S3PRL: their configs, their data roots, and what S3PRL's wheel lacks to run them."""

import copy
import functools
import importlib
import logging
import math
import pathlib
import re
from typing import Any

from s3prl_ofa.checkpoint.bounded_yaml import read_yaml
from s3prl_ofa.errors import UsageError
from s3prl_ofa.model.config import MIN_FRAME_PERIOD_MS
from s3prl_ofa.resources import folder
from s3prl_ofa.superb.tasks.corpora import corpus_root, split_names
from s3prl_ofa.superb.tasks.speakers import speaker_folders

logger = logging.getLogger(__name__)

S3PRL_DOWNSTREAM = {"asr": "asr", "pr": "ctc", "sid": "voxceleb1"}
CTC_TASKS = ("asr", "pr")
SPLITS = ("train-clean-100", "dev-clean", "test-clean")  # SUPERB's train, dev and test
# what a mini config trains on: the first of these whose folders are all there
MINI_SPLITS = (("train-mini", "dev-mini", "test-mini"), ("train-clean-5", "dev-clean-2", "dev-clean-2"), SPLITS)
SPEAKER_LISTS = ("veri_test_class.txt", "iden_split.txt")  # S3PRL's name for VoxCeleb1's list, and VoxCeleb's own
PLACEHOLDER = re.compile(r"\$\{(\w+)\}")


class DataRoots:
    """What the placeholders of a config stand for; each is looked up only when a config holds it.

    given: what the options said, by name: librispeech, voxceleb1, prepared (the output folder of ``s3prl-ofa prepare
    all``), bucket, lexicon, speaker_list (each also found below ``prepared``) and splits ("TRAIN,DEV,TEST", several
    joined by +). Missing ones may be left out or None. Every method raises UsageError naming the option that mends it.
    """

    def __init__(self, given: dict[str, str | None], mini: bool) -> None:
        self.given = given
        self.mini = mini

    def librispeech(self) -> str:
        return str(corpus_root(self.given.get("librispeech"), "--librispeech", "LibriSpeech"))

    def voxceleb1(self) -> str:
        root = corpus_root(self.given.get("voxceleb1"), "--voxceleb1", "VoxCeleb1")
        speaker_folders(root)
        return str(root)

    def bucket(self) -> str:
        return self.prepared("bucket", "bucket", "s3prl-ofa prepare bucket --librispeech ROOT --out DIR")

    def lexicon(self) -> list[str]:
        if self.given.get("lexicon"):
            return [self.existing(name, "--lexicon") for name in self.given["lexicon"].split(",")]
        return [self.prepared("lexicon", "lexicon.txt", "s3prl-ofa prepare lexicon --librispeech ROOT --out DIR")]

    def speaker_list(self) -> str:
        make = "s3prl-ofa prepare voxceleb1 --voxceleb1 ROOT --out DIR"
        if not self.given.get("speaker_list"):
            # a prepared list holds only files that are there, so it goes before the corpus's own
            folders = [self.given.get("prepared"), self.voxceleb1()]
            for path in (pathlib.Path(folder, name) for folder in folders if folder for name in SPEAKER_LISTS):
                if path.is_file():
                    return str(path.resolve())
        return self.prepared("speaker_list", SPEAKER_LISTS[0], make)

    def prepared(self, name: str, file_name: str, make: str) -> str:
        """The path that the option ``name`` gives, or else the file of that name below ``prepared``."""
        option = "--" + name.replace("_", "-")
        if self.given.get(name):
            return self.existing(self.given[name], option)
        if self.given.get("prepared"):
            path = pathlib.Path(self.existing(self.given["prepared"], "--prepared"), file_name)
            if path.exists():
                return str(path)
            raise UsageError(f"--prepared {self.given['prepared']} holds no {file_name}; `{make}` makes it")
        raise UsageError(f"this task needs {option} PATH or --prepared DIR; `{make}` makes what it reads")

    @staticmethod
    def existing(path: str, option: str) -> str:
        found = pathlib.Path(path).expanduser()
        if not found.exists():
            raise UsageError(f"{option} {path}: there is no such file or folder")
        return str(found.resolve())

    def splits(self) -> tuple[list[str], ...]:
        """The names of the splits to train on, to choose the checkpoint by and to test on."""
        root = pathlib.Path(self.librispeech())
        if self.given.get("splits"):
            named = tuple(part.split("+") for part in self.given["splits"].split(","))
            if len(named) != 3:
                raise UsageError(f"--splits must be TRAIN,DEV,TEST, found {self.given['splits']}")
        else:
            choices = MINI_SPLITS if self.mini else (SPLITS,)
            whole = [names for names in choices if all((root / name).is_dir() for name in names)]
            named = tuple([name] for name in (whole or choices)[0])
        for name in sum(named, []):
            if not (root / name).is_dir():
                raise UsageError(
                    f"there is no split {name} in {root}; it has {', '.join(split_names(root)) or 'no split'}: "
                    f"choose with --splits TRAIN,DEV,TEST{'' if self.mini else ' or --mini'}"
                )
        return named

    def train(self) -> list[str]:
        return self.splits()[0]

    def dev(self) -> list[str]:
        return self.splits()[1]

    def test(self) -> list[str]:
        return self.splits()[2]


PLACEHOLDERS = ("librispeech", "voxceleb1", "bucket", "lexicon", "speaker_list", "train", "dev", "test")


def resolve_config(downstream: str, config: str | None, mini: bool, roots: dict[str, str | None]) -> dict[str, Any]:
    """S3PRL's whole config (runner, optimizer, downstream_expert, ...) of a task, ready to run.

    downstream: asr, pr or sid, or S3PRL's own name for them. config: the path of a YAML file; None takes ours, the
    small one with ``mini``. ``${name}`` in it is filled from ``roots`` (see ``DataRoots``); a vocabulary becomes an
    absolute path: that of the one in ``roots``, or else of the config's, as it stands, beside the config, below
    ``prepared``, or ours of that name.
    Raises UsageError for an unknown task, a missing or unreadable config and missing data, naming the option.
    """
    task = {name: task for task, name in S3PRL_DOWNSTREAM.items()}.get(downstream, downstream)
    if config is None and task not in S3PRL_DOWNSTREAM:
        raise UsageError(f"there is a config for {', '.join(S3PRL_DOWNSTREAM)}, found {downstream}: give yours with -c")
    ours = folder("downstream_configs")
    path = pathlib.Path(config).expanduser() if config else ours / f"{task}{'_mini' if mini else ''}.yaml"
    if not path.is_file():
        raise UsageError(f"there is no config {path}")
    try:
        loaded = read_yaml(path.read_text("utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise UsageError(f"{path} must hold a mapping with runner, optimizer and downstream_expert")
    filled = fill(loaded, DataRoots(roots, mini), path)
    expert = filled.get("downstream_expert") or {}
    if not isinstance(expert, dict):
        raise UsageError(f"{path}: downstream_expert must be a mapping, found {expert!r}")
    for section, key in (("datarc", "dict_path"), ("text", "vocab_file")):
        values = expert.get(section) or {}
        if task == "asr" and section == "datarc":
            values.setdefault("dict_path", "char.dict")
        if key in values:
            values[key] = chosen_vocabulary(values[key], path.parent, roots)
    return filled


def fill(value: Any, roots: DataRoots, path: pathlib.Path) -> Any:
    """The value with every ``${name}`` replaced; one that is the whole of a string may become a list."""
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
        return getattr(roots, whole[1])()
    return PLACEHOLDER.sub(lambda match: str(getattr(roots, match[1])()), value)


def chosen_vocabulary(name: str, beside: pathlib.Path, roots: dict[str, str | None]) -> str:
    """The path of the vocabulary that an option gives, or else of the config's; one below ``prepared`` replaces ours of
    the same name."""
    if roots.get("vocabulary"):
        return DataRoots.existing(roots["vocabulary"], "--vocabulary")
    ours = folder("downstream_configs")
    found = pathlib.Path(vocabulary(name, beside, ours))
    if found.parent == ours and roots.get("prepared"):
        prepared = pathlib.Path(roots["prepared"]).expanduser().resolve() / found.name
        return str(prepared if prepared.is_file() else found)
    return str(found)


def vocabulary(name: str, beside: pathlib.Path, ours: pathlib.Path) -> str:
    """The absolute path of a vocabulary file; S3PRL's own configs give one relative to a checkout."""
    path = pathlib.Path(name).expanduser()
    for candidate in (path, beside / path, ours / path.name):
        if candidate.is_file():
            return str(candidate.resolve())
    raise UsageError(f"there is no vocabulary {name}, neither here nor in {beside}")


def scale_specaug(config: dict[str, Any], frame_period_ms: float) -> dict[str, Any]:
    """The config with SpecAug's widths along time turned from frames of 20 ms into frames of ``frame_period_ms``.

    A mask then covers the same stretch of speech whatever the rate: 40 frames of 20 ms become 10 of 80 ms. Never below
    one frame. With ``repeat: N`` the period that counts is that of the repeated frames.
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
        # S3PRL draws from low up to, and without, high
        low = math.floor(low * ratio)
        specaug["time_mask_width_range"] = [low, max(low + 2, round((high - 1) * ratio) + 1)]
    return scaled


def patch_ctc_loaders() -> None:
    """Gives all loaders of S3PRL's ctc the ``num_workers`` of the config; may be called again.

    ``load_dataset`` takes it out of the config it is given, so that all loaders but the first would start 12 workers.
    """
    expert = importlib.import_module("s3prl.downstream.ctc.expert")
    if not hasattr(expert.load_dataset, "__wrapped__"):
        expert.load_dataset = keep_num_workers(expert.load_dataset)


def keep_num_workers(load_dataset):
    """S3PRL's ``load_dataset(split, tokenizer, corpus)``, which changes the corpus, on a copy of it."""

    @functools.wraps(load_dataset)
    def load(split, tokenizer, corpus):
        return load_dataset(split, tokenizer, dict(corpus))

    return load
