"""The labels of asr and pr: stores the vocabulary with its model, and checks that the data has no other labels.

S3PRL's configs name a vocabulary file, whose lines number the labels. A model is useless without the vocabulary that it
was trained with, so the content of the file is stored in the config of every checkpoint.
"""

import argparse
import importlib
import logging
import pathlib
from typing import Any

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_write
from s3prl_ofa.superb.compat.task_names import ASR, PR
from s3prl_ofa.superb.tasks.configs import CORPUS, CTC_TASKS, VOCABULARY, mapping_at, section_of, splits_of, task_of
from s3prl_ofa.superb.tasks.corpora import read_lines

logger = logging.getLogger(__name__)

STORED = "vocabulary"  # the key below downstream_expert of the vocabulary's content
SLOTS = "slots"  # the key of the names of sf's slots
SLOTS_FILE = "downstream_expert.text.slots_file"
OUTPUT = "model.linear.bias"  # of the downstream models of these tasks, one number per label


def settle_labels(args: argparse.Namespace, config: dict[str, Any], trained: dict[str, Any] | None) -> None:
    """Settles the vocabulary of a run of asr or pr, and checks its data; does nothing for other tasks.

    config: changed in place. trained: the checkpoint whose weights are used, if any. Nothing is written for a new
    training whose data cannot be used. Raises UsageError as ``store_vocabulary`` and ``check_labels`` do.
    """
    if trained:
        store_vocabulary(args.downstream, config, pathlib.Path(args.expdir), trained)
    check_labels(args, config, trained)
    if not trained:
        store_vocabulary(args.downstream, config, pathlib.Path(args.expdir), None)


def store_vocabulary(downstream: str, config: dict[str, Any], expdir: pathlib.Path, trained: dict | None) -> None:
    """Puts the vocabulary into ``config``, which checkpoints hold, and into the experiment's folder.

    trained: the checkpoint whose weights are used, if any; its vocabulary is used, whatever the config says. Raises
    UsageError when there is none.
    """
    named = vocabulary_file(downstream, config)
    if named is None:
        return
    store(STORED, named, VOCABULARY[downstream], config, expdir, trained)
    section, key = section_of(config, SLOTS_FILE)
    if key in section:
        store(SLOTS, pathlib.Path(section[key]), SLOTS_FILE, config, expdir, trained)


def store(
    name: str, named: pathlib.Path, where: str, config: dict[str, Any], expdir: pathlib.Path, trained: dict | None
) -> None:
    """Stores a file of labels as ``store_vocabulary`` does: under the key ``name``, and as NAME.txt, to which the key
    ``where`` of the config points unless the file that it names is the same."""
    expert = config["downstream_expert"]
    stored = mapping_at(trained or {}, "Config", "downstream_expert").get(name)
    expert[name] = stored if isinstance(stored, str) else read_vocabulary(named)
    atomic_write(expdir / f"{name}.txt", expert[name])
    if named.is_file():
        if read_vocabulary(named) == expert[name]:
            return
        logger.warning("%s is not used: the model was trained with another %s, which its checkpoint holds", named, name)
    section, key = section_of(config, where)
    section[key] = str(expdir / f"{name}.txt")


def vocabulary_file(downstream: str, config: dict[str, Any]) -> pathlib.Path | None:
    """The vocabulary that the config names; None if it names none, as for subwords, for which S3PRL has a model."""
    section, key = section_of(config, VOCABULARY.get(downstream, ""))
    named = key in section and (downstream == ASR or section.get("mode") in ("character", "character-slot", "word"))
    return pathlib.Path(section[key]) if named else None


def read_vocabulary(path: pathlib.Path) -> str:
    """The content of a vocabulary. Raises UsageError if it is missing, not UTF-8 or begins with a byte order mark."""
    if not path.is_file():
        raise UsageError(f"the vocabulary {path}, whose lines number the labels, is missing; put it back")
    read_lines(path)  # raises UsageError if it is not UTF-8
    text = path.read_text("utf-8")
    if text.startswith("\ufeff"):
        raise UsageError(
            f"{path} begins with a byte order mark, which would become part of a label; save it as UTF-8 without one"
        )
    return text


def check_labels(args: argparse.Namespace, config: dict[str, Any], trained: dict | None) -> None:
    """Reads the splits that a run of asr or pr trains on and scores, so that bad data ends it now and not hours later.

    trained: see ``store_vocabulary``. Raises UsageError for labels that the vocabulary lacks, for splits without a
    usable utterance or asr's training with only one, and for weights that belong to another number of labels. Before a
    training, a test split with such labels or no usable utterance is only a warning.
    """
    data, _ = section_of(config, CORPUS.get(args.downstream, ""))
    if not data or task_of(args.downstream, config) not in CTC_TASKS:
        return
    vocabulary = load_vocabulary(args.downstream, config)
    size = len(vocabulary) if args.downstream == ASR else vocabulary.vocab_size
    output = ((trained or {}).get("Downstream") or {}).get(OUTPUT)
    if output is not None and len(output) != size:
        file = vocabulary_file(args.downstream, config) or "of its subwords"
        raise UsageError(
            f"the trained model has {len(output)} labels, but the vocabulary {file} makes {size}: "
            f"it is not the one that the model was trained with"
        )
    splits = splits_of(config, args.mode, args.evaluate_split)
    for split in (split for split in splits if split in data):
        found = labeled(args.downstream, config, split)
        if split == "train" and args.downstream == ASR and len(found) == 1 < data.get("batch_size", 1):
            raise UsageError(f"{found[0][0]} is the only utterance to train on; S3PRL skips a batch of one: give more")
    if args.mode == "train" and "test" in data and "test" not in splits:
        try:
            labeled(args.downstream, config, "test")
        except UsageError as error:
            logger.warning("the test split cannot be scored with this training: %s", error)


def load_vocabulary(downstream: str, config: dict[str, Any]) -> Any:
    """S3PRL's dictionary for asr, its text encoder for pr. Raises UsageError for a file that is not a vocabulary."""
    path = vocabulary_file(downstream, config)
    if path:
        read_vocabulary(path)
    if downstream == PR:
        text = importlib.import_module("s3prl.downstream.ctc.text")
        return text.load_text_encoder(**config["downstream_expert"]["text"])
    try:
        return importlib.import_module("s3prl.downstream.asr.dictionary").Dictionary.load(str(path))
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{path}: expected lines of a symbol and a count, each symbol once ({error})") from None


def labeled(downstream: str, config: dict[str, Any], split: str) -> list[tuple[str, list[int]]]:
    """(audio path, label ids) of each utterance of a split, from the dataset that S3PRL trains on.

    Raises UsageError as that dataset does.
    """
    expert = config["downstream_expert"]
    vocabulary = load_vocabulary(downstream, config)
    if downstream == ASR:
        datarc = expert["datarc"]
        asr = importlib.import_module("s3prl.downstream.asr.expert")
        dataset = asr.SequenceDataset(split, 1, vocabulary, **datarc)
        return [(f"{datarc['libri_root']}/{name}", dataset.Y[name].tolist()) for (name,) in dataset.X]
    data = importlib.import_module("s3prl.downstream.ctc.data")
    dataset, _ = data.create_dataset(split, vocabulary, **expert["corpus"])
    return list(zip(map(str, dataset.file_list), dataset.text, strict=True))
