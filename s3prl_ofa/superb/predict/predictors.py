"""What the downstream model of each task says about new audio. Another task is an entry of ``PREDICTORS``."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from s3prl_ofa.superb.compat.task_names import ASR, PR
from s3prl_ofa.superb.tasks.configs import mapping_at
from s3prl_ofa.superb.tasks.speakers import VOXCELEB1, patch_dataset

SID = "voxceleb1"
TOP = 5  # classes whose probability is given
WORD_END = "|"  # in S3PRL's characters


class Predictor(NamedTuple):
    """How to predict with a task of S3PRL.

    predict: from the task's expert, in eval mode, the features (frames, dim) of each utterance and the times
        (frames, 2) of its frames: what to write of each utterance, as JSON can hold it.
    prepare: called with the experiment's config before S3PRL builds the expert, which may read a corpus.
    """

    predict: Callable[[Any, list[Tensor], list[Tensor]], list[dict[str, Any]]]
    prepare: Callable[[dict[str, Any]], None] = lambda config: None


def segments(log_probs: Tensor, times: Tensor, silent: set[int]) -> Iterator[tuple[int, float, float]]:
    """Yields (label, start, end) in seconds of each label of CTC's best path.

    log_probs: (output frames, labels), each of one or, if the model subsamples, several of the frames of ``times``
    (frames, 2). silent: labels that are not said, such as the blank.
    """
    labels, counts = log_probs.argmax(1).unique_consecutive(return_counts=True)
    step = len(times) / len(log_probs)
    end = 0
    for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
        begin, end = end, end + count
        if label not in silent:
            last = min(len(times), max(int(begin * step) + 1, round(end * step))) - 1
            yield label, float(times[int(begin * step), 0]), float(times[last, 1])


def timed(key: str, label: str, start: float, end: float) -> dict[str, Any]:
    return {key: label, "start": round(start, 3), "end": round(end, 3)}


def transcribe(expert: Any, features: list[Tensor], times: list[Tensor]) -> list[dict[str, Any]]:
    """asr: the text, as S3PRL's evaluation decodes it, and the words of the best path with their times."""
    log_probs, lengths = expert._get_log_probs(features)
    log_probs = log_probs.float().contiguous().cpu()
    _, texts = expert._decode(log_probs, lengths)
    rows = []
    for found, length, places, text in zip(log_probs, lengths.tolist(), times, texts, strict=True):
        words: list[dict[str, Any]] = []
        inside = False
        for label, start, end in segments(found[:length], places, {expert.blank, expert.dictionary.eos()}):
            symbol = expert.dictionary.symbols[label]
            if symbol == WORD_END:
                inside = False
            elif inside:
                words[-1] |= timed("word", words[-1]["word"] + symbol, words[-1]["start"], end)
            else:
                words.append(timed("word", symbol, start, end))
                inside = True
        rows.append({"text": " ".join(text), "words": words})
    return rows


def recognize_phones(expert: Any, features: list[Tensor], times: list[Tensor]) -> list[dict[str, Any]]:
    """pr: the phones of CTC's best path, with their times."""
    lengths = torch.IntTensor([len(feature) for feature in features])
    logits, lengths = expert.model(expert.projector(pad_sequence(features, batch_first=True)), lengths)
    tokenizer, rows = expert.tokenizer, []
    for found, length, places in zip(logits.float().cpu(), lengths.tolist(), times, strict=True):
        said = list(segments(found[:length], places, {tokenizer.pad_idx, tokenizer.eos_idx}))
        phones = [timed("phone", tokenizer.decode([label]), start, end) for label, start, end in said]
        rows.append({"text": tokenizer.decode([label for label, _, _ in said]), "phones": phones})
    return rows


def classified(logits: Tensor, names: list[str]) -> list[dict[str, Any]]:
    """The most probable class of each utterance and the probabilities of the first few; logits (batch, classes)."""
    found = logits.float().softmax(1).topk(min(TOP, len(names)), dim=1)
    rows = []
    for labels, values in zip(found.indices.tolist(), found.values.tolist(), strict=True):
        probabilities = {names[label]: round(value, 6) for label, value in zip(labels, values, strict=True)}
        rows.append({"class": names[labels[0]], "probabilities": probabilities})
    return rows


def utterance_logits(expert: nn.Module, features: list[Tensor]) -> Tensor:
    """Logits (batch, classes) of S3PRL's experts with a projector and an utterance-level model."""
    lengths = torch.IntTensor([len(feature) for feature in features]).to(features[0].device)
    return expert.model(expert.projector(pad_sequence(features, batch_first=True)), lengths)[0]


def speakers_of(config: dict[str, Any]) -> list[str]:
    return mapping_at(config, "downstream_expert", "datarc").get("speakers") or VOXCELEB1


def identify_speaker(expert: Any, features: list[Tensor], times: list[Tensor]) -> list[dict[str, Any]]:
    """sid: the speaker and probabilities."""
    speakers = expert.train_dataset.label2speaker(range(expert.train_dataset.speaker_num))
    return classified(utterance_logits(expert, features), speakers)


PREDICTORS = {
    ASR: Predictor(transcribe),
    PR: Predictor(recognize_phones),
    SID: Predictor(
        identify_speaker, lambda config: patch_dataset(speakers_of(config), {"train": [], "dev": [], "test": []})
    ),
}
