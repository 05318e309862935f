"""The score of QUESST 2014 for S3PRL's query by example, which S3PRL leaves to the programs of that evaluation."""

import functools
import logging
import pathlib
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

QUESST_PARTS = {"dev": "dev", "test": "eval"}  # QUESST's names of the splits
FOUND_TERMS = "benchmark.stdlist.xml"  # which S3PRL writes to the experiment's folder
FALSE_ALARM_WEIGHT = 12.49  # beta for costs of 1 and 100 and a prior of 0.0008 (QUESST 2014)
FOUND = re.compile(r"LEXEME\s+(quesst14_\d+).*?(quesst14_(?:dev|eval)_\d+)")


def with_score(log_records: Callable) -> Callable:
    """S3PRL's ``log_records``, which writes the scores of all queries, and then logs their ``mtwv``."""

    @functools.wraps(log_records)
    def logged(self: Any, mode: str, records: Any, logger: Any, global_step: int, **others: Any) -> None:
        log_records(self, mode, records, logger=logger, global_step=global_step, **others)
        scores = read_scores(self.expdir / FOUND_TERMS)
        truth = read_truth(pathlib.Path(self.datarc["dataset_root"]), QUESST_PARTS.get(mode, "eval"))
        if truth:
            value = mtwv(scores, truth)
            logger.add_scalar(f"quesst14_dtw/{mode}-mtwv", value, global_step=global_step)
            print(f"{mode} mtwv: {value}")

    return logged


def read_scores(path: pathlib.Path) -> dict[str, dict[str, float]]:
    """The score of every document, by query."""
    return {
        query.get("termid"): {term.get("file"): float(term.get("score")) for term in query}
        for query in ElementTree.parse(path).getroot()
    }


def read_truth(root: pathlib.Path, part: str) -> set[tuple[str, str]]:
    """The pairs (query, document that holds it); logs a warning if the database lacks them."""
    path = root / "scoring" / f"groundtruth_quesst14_{part}" / f"quesst14_{part}.rttm"
    if not path.is_file():
        logger.warning("there is no %s, so the queries are not scored", path)
        return set()
    found = map(FOUND.match, path.read_text("utf-8").splitlines())
    return {(match[2], match[1]) for match in found if match}


def mtwv(scores: dict[str, dict[str, float]], truth: set[tuple[str, str]]) -> float:
    """The maximum term-weighted value: 1 minus, at the best threshold for all queries, the mean over the queries that
    some document holds of P(miss) + beta P(false alarm). 1 is perfect, 0 is what no detection at all gets."""
    thresholds = np.unique([score for documents in scores.values() for score in documents.values()])
    values = []
    for query, documents in scores.items():
        hits = np.sort([score for document, score in documents.items() if (query, document) in truth])
        others = np.sort([score for document, score in documents.items() if (query, document) not in truth])
        if len(hits):
            misses = np.searchsorted(hits, thresholds) / len(hits)
            alarms = (len(others) - np.searchsorted(others, thresholds)) / max(len(others), 1)
            values.append(1 - misses - FALSE_ALARM_WEIGHT * alarms)
    return max(0.0, float(np.mean(values, 0).max())) if values else float("nan")
