"""Fluent Speech Commands for S3PRL's intent classification, limited to usable utterances."""

import pathlib
from typing import Any

import pandas

from s3prl_ofa.errors import UsageError, listed
from s3prl_ofa.superb.tasks.corpora import Corpus, Utterance

SLOTS = ("action", "object", "location")
PARTS = ("train", "valid", "test")


def read_corpus(expert: Any) -> None:
    """Gives S3PRL's expert its tables and labels; replaces its method ``get_dataset``.

    As in S3PRL, the values of a slot are numbered in the order in which they appear in the training table. Raises
    UsageError for a missing table or column, and for values that the training table lacks.
    """
    root = pathlib.Path(expert.datarc["file_path"])
    tables = {part: read_table(root / "data" / f"{part}_data.csv") for part in PARTS}
    expert.Sy_intent, expert.values_per_slot = {}, []
    for slot in SLOTS:
        values = list(dict.fromkeys(tables["train"][slot]))
        for part, table in tables.items():
            if unknown := sorted(set(table[slot]) - set(values)):
                raise UsageError(
                    f"{root}: {part}_data.csv has values of {slot} that train_data.csv lacks: {listed(unknown)}"
                )
        expert.Sy_intent[slot] = dict(enumerate(values)) | {value: index for index, value in enumerate(values)}
        expert.values_per_slot.append(len(values))
    expert.base_path = str(root)
    for part, table in tables.items():
        corpus = Corpus([Utterance(root / path, "", "") for path in table["path"]])
        usable = {utterance.audio for utterance in corpus.usable(root / "data" / f"{part}_data.csv")}
        kept = table[[root / path in usable for path in table["path"]]].reset_index(drop=True)
        setattr(expert, f"{part}_df", kept)


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
