"""Scores of single utterances, so that two systems can be compared on the same speech.

S3PRL logs only the score of a whole split. On the way its tasks record the outcome of each utterance: transcripts, or
whether an answer was right. From these records come, per utterance, the errors or hits and the number of words or
answers they are among; the score of the split is the ratio of their sums.
"""

from collections.abc import Callable, Sequence
from typing import Any

import editdistance

Records = dict[str, list[Any]]  # as S3PRL's tasks fill them in an evaluation
Counts = list[tuple[float, int]]  # per utterance: errors or hits, and the words, units or answers they are among


def utterance_scores(records: Records, metrics: Sequence[str]) -> dict[str, Any] | None:
    """``utterances`` (names) and, by metric, ``sums`` and ``counts`` of each; None for a task that is not known to
    record them. metrics: those that were logged."""
    names = [str(name) for name in records.get("filenames") or records.get("filename") or []]
    found = {}
    for metric in metrics if names else ():
        outcomes = COUNTED[metric](records) if metric in COUNTED else []
        if len(outcomes) == len(names):
            sums, counts = zip(*outcomes, strict=True)
            found[metric] = {"sums": sums, "counts": counts}
    return {"utterances": names, **found} if found else None


def edits(hypotheses: list[list[str]], references: list[list[str]]) -> Counts:
    """The edit distance to each reference, and its length."""
    pairs = zip(hypotheses, references, strict=True)
    return [(editdistance.eval(hypothesis, reference), len(reference)) for hypothesis, reference in pairs]


def word_edits(records: Records) -> Counts:
    """Of the words of asr, or what spaces separate in the transcripts of ctc, such as phones."""
    if "pred_words" in records:
        return edits(records["pred_words"], records["target_words"])
    return edits(*([text.split(" ") for text in records.get(key, [])] for key in ("hypothesis", "groundtruth")))


def unit_edits(records: Records) -> Counts:
    """Of the characters of asr."""
    return edits(*([text.split() for text in records.get(key, [])] for key in ("pred_tokens", "target_tokens")))


def hits(records: Records) -> Counts:
    """1 for a right answer and 0 for a wrong one."""
    return [(int(hit), 1) for hit in records.get("acc", [])]


COUNTED: dict[str, Callable[[Records], Counts]] = {"wer": word_edits, "per": word_edits, "uer": unit_edits, "acc": hits}
