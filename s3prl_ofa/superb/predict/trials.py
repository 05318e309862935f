"""Trials of speaker verification: which pairs of files are scored, and their scores."""

import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from s3prl_ofa.errors import UsageError
from s3prl_ofa.extract.inputs import Utterance
from s3prl_ofa.superb.tasks.corpora import read_lines

Pair = tuple[str, str]  # names of utterances


def read_trials(path: pathlib.Path, utterances: list[Utterance]) -> list[Pair]:
    """The pairs of a list: two files per line, separated by spaces or a tab, optionally after a label as in VoxCeleb's.

    A file is given by its path or by the name of its row. Raises UsageError for any other line, and for files that are
    not among the utterances.
    """
    names = {os.fspath(one.path): one.name for one in utterances} | {one.name: one.name for one in utterances}
    pairs = []
    for number, line in read_lines(path):
        files = line.split("\t" if "\t" in line else None)
        if len(files) == 3 and files[0] in ("0", "1"):
            del files[0]
        if len(files) != 2:
            raise UsageError(f"{path}, line {number}: expected two files, or 0 or 1 and two files, found {line[:80]!r}")
        enrol, test = (names.get(file) or names.get(os.path.abspath(file)) for file in files)
        if enrol is None or test is None:
            raise UsageError(f"{path}, line {number}: {files[enrol is not None]} is not among the audio given")
        pairs.append((enrol, test))
    return pairs


def scores(embeddings: dict[str, list[float]], pairs: Iterable[Pair]) -> Iterator[dict[str, Any]]:
    """Yields the cosine of each pair's embeddings, which have length 1; skips files that could not be used."""
    vectors = {name: np.array(embedding) for name, embedding in embeddings.items()}
    for enrol, test in pairs:
        if enrol in vectors and test in vectors:
            yield {"enrol": enrol, "test": test, "score": round(float(vectors[enrol] @ vectors[test]), 6)}
