"""Fluent Speech Commands for S3PRL's intent classification, limited to usable utterances."""

import pathlib
from typing import Any

import pandas

from s3prl_ofa.errors import UsageError, listed
from s3prl_ofa.superb.tasks.corpora import Corpus, Utterance

SLOTS = ("action", "object", "location")
PARTS = ("train", "valid", "test")
INTENTS = "intents"  # the key of the values of each slot, by label


def read_corpus(expert: Any) -> None:
    """Gives S3PRL's expert its tables and labels; replaces its method ``get_dataset``.

    Raises UsageError for a missing table or column, and for values that the model has not been trained on.
    """
    root = pathlib.Path(expert.datarc["file_path"])
    tables = {part: read_table(root / "data" / f"{part}_data.csv") for part in PARTS}
    for slot, values in settle_values(expert).items():
        for part, table in tables.items():
            if unknown := sorted(set(table[slot]) - set(values)):
                raise UsageError(
                    f"{root}: {part}_data.csv has values of {slot} that the training data lack: {listed(unknown)}"
                )
    expert.base_path = str(root)
    for part, table in tables.items():
        corpus = Corpus([Utterance(root / path, "", "") for path in table["path"]])
        usable = {utterance.audio for utterance in corpus.usable(root / "data" / f"{part}_data.csv")}
        kept = table[[root / path in usable for path in table["path"]]].reset_index(drop=True)
        setattr(expert, f"{part}_df", kept)


def settle_values(expert: Any) -> dict[str, list[str]]:
    """Gives S3PRL's expert the values of each slot, by label, and returns them.

    They are numbered as they first appear in the training table, as in S3PRL, and stored in the experiment's config
    (``downstream_expert.datarc.intents``), and so in the checkpoints. Raises UsageError for a missing table or column.
    """
    datarc = expert.datarc
    if INTENTS not in datarc:
        table = read_table(pathlib.Path(datarc["file_path"], "data", "train_data.csv"))
        datarc[INTENTS] = {slot: list(dict.fromkeys(table[slot])) for slot in SLOTS}
    found = datarc[INTENTS]
    labels = {slot: dict(enumerate(found[slot])) for slot in SLOTS}
    expert.Sy_intent = {slot: names | {name: label for label, name in names.items()} for slot, names in labels.items()}
    expert.values_per_slot = [len(found[slot]) for slot in SLOTS]
    return found


def read_table(path: pathlib.Path) -> pandas.DataFrame:
    """The columns path and ``SLOTS`` of a table, as text."""
    if not path.is_file():
        raise UsageError(
            f"there is no {path}; expected Fluent Speech Commands, with {', '.join(PARTS)}_data.csv in data/"
        )
    try:
        return pandas.read_csv(path, dtype=str, keep_default_na=False)[["path", *SLOTS]]
    except (ValueError, KeyError) as error:  # pandas' ParserError is a ValueError
        found = " ".join(str(error).split())
        raise UsageError(f"{path}: expected the columns path, {', '.join(SLOTS)}, found {found}") from None
