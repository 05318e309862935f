"""How the downstream model of each task predicts for new audio. Another task is another entry of ``PREDICTORS``."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from s3prl.downstream.ctc.metric import parse
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from s3prl_ofa.checkpoint.safe_loading import patched_attributes
from s3prl_ofa.io.audio import MIN_SAMPLES, SAMPLE_RATE
from s3prl_ofa.superb.compat.task_names import S3PRL_DOWNSTREAM
from s3prl_ofa.superb.tasks.configs import mapping_at
from s3prl_ofa.superb.tasks.emotions import EMOTIONS
from s3prl_ofa.superb.tasks.intents import INTENTS, SLOTS, settle_values
from s3prl_ofa.superb.tasks.speakers import VOXCELEB1

TOP = 5  # classes whose probability is given
WORD_END = "|"  # in asr's characters
THRESHOLD = 0.5  # of a speaker's probability, as in the error that S3PRL logs
EMBEDDING = "embedding"

Row = dict[str, Any]
# gives the features (frames, dim) of each wave (samples,), and the times (frames, 2) of its frames in seconds
Upstream = Callable[[list[Tensor]], tuple[list[Tensor], list[Tensor]]]


class Predictor(NamedTuple):
    """How to predict with a task of S3PRL.

    predict: takes the task's expert, in eval mode, its upstream, and waves (samples,); returns a row that JSON can hold
        for each wave.
    without_corpus: takes S3PRL's module ``expert`` of the task, the experiment's config and its downstream weights;
        returns a context in which S3PRL builds the expert without reading a corpus.
    effects: whether the task applies the ``EFFECTS`` of its module ``dataset`` to waves.
    """

    predict: Callable[[Any, Upstream, list[Tensor]], list[Row]]
    without_corpus: Callable[[ModuleType, Row, Row], contextlib.AbstractContextManager] = (
        lambda expert, config, weights: contextlib.nullcontext()
    )
    effects: bool = False


def runs(labels: Tensor) -> Iterator[tuple[int, int, int]]:
    """Yields (label, begin, end) of each run of equal labels (frames,)."""
    end = 0
    for label, count in zip(*(found.tolist() for found in labels.unique_consecutive(return_counts=True)), strict=True):
        begin, end = end, end + count
        yield label, begin, end


def segments(log_probs: Tensor, times: Tensor, silent: set[int]) -> Iterator[tuple[int, float, float]]:
    """Yields (label, start, end) in seconds of each label of CTC's best path.

    log_probs: (output frames, labels), each of one or, if the model subsamples, several of the frames of ``times``
    (frames, 2). silent: labels that are not spoken, such as the blank.
    """
    step = len(times) / len(log_probs)
    for label, begin, end in runs(log_probs.argmax(1)):
        if label not in silent:
            last = min(len(times), max(int(begin * step) + 1, round(end * step))) - 1
            yield label, float(times[int(begin * step), 0]), float(times[last, 1])


def timed(key: str, label: str, start: float, end: float) -> Row:
    return {key: label, "start": round(start, 3), "end": round(end, 3)}


def words_of(characters: Iterable[tuple[str, float, float]], boundary: str) -> list[Row]:
    """The words of (character, start, end) in seconds, each with its times."""
    words: list[Row] = []
    inside = False
    for character, start, end in characters:
        if character == boundary:
            inside = False
        elif inside:
            words[-1] |= timed("word", words[-1]["word"] + character, words[-1]["start"], end)
        else:
            words.append(timed("word", character, start, end))
            inside = True
    return words


def transcribe(expert: Any, upstream: Upstream, waves: list[Tensor]) -> list[Row]:
    """asr: the text, as S3PRL's evaluation decodes it, and the words of the best path with their times."""
    features, times = upstream(waves)
    log_probs, lengths = expert._get_log_probs(features)
    log_probs = log_probs.float().contiguous().cpu()
    _, texts = expert._decode(log_probs, lengths)
    rows, symbols = [], expert.dictionary.symbols
    for found, length, places, text in zip(log_probs, lengths.tolist(), times, texts, strict=True):
        spoken = segments(found[:length], places, {expert.blank, expert.dictionary.eos()})
        words = words_of(((symbols[label], start, end) for label, start, end in spoken), WORD_END)
        rows.append({"text": " ".join(text), "words": words})
    return rows


def recognize(expert: Any, upstream: Upstream, waves: list[Tensor]) -> list[Row]:
    """pr: the phones of CTC's best path, with their times. sf: its text with slots, as S3PRL's evaluation decodes it,
    its words with their times, and its slots as S3PRL's metrics read them."""
    features, times = upstream(waves)
    lengths = torch.IntTensor([len(feature) for feature in features])
    logits, lengths = expert.model(expert.projector(pad_sequence(features, batch_first=True)), lengths)
    tokenizer, rows = expert.tokenizer, []
    for found, length, places in zip(logits.float().cpu(), lengths.tolist(), times, strict=True):
        spoken = list(segments(found[:length], places, {tokenizer.pad_idx, tokenizer.eos_idx}))
        row: Row = {"text": tokenizer.decode([label for label, _, _ in spoken])}
        marks = getattr(tokenizer, "id2slot", {})  # labels of a slot's begin and end
        symbols = [(tokenizer.decode([label]), start, end) for label, start, end in spoken if label not in marks]
        if tokenizer.token_type.startswith("character"):
            row["words"] = words_of(symbols, " ")
        else:
            row["phones"] = [timed("phone", *symbol) for symbol in symbols]
        if marks:
            _, _, _, slots = parse(row["text"], "")  # VALUE:SLOT;VALUE:SLOT
            pairs = [slot.rsplit(":", 1) for slot in slots.split(";") if slot]
            row["slots"] = [{"slot": slot, "value": value} for value, slot in pairs]
        rows.append(row)
    return rows


def of_each(predict: Callable[[Any, Tensor], Row]) -> Callable[[Any, Upstream, list[Tensor]], list[Row]]:
    """A predictor that takes utterances one by one, because some of S3PRL's models also pool a batch's padding."""
    return lambda expert, upstream, waves: [predict(expert, feature) for feature in upstream(waves)[0]]


def classified(logits: Tensor, names: list[str]) -> Row:
    """The most probable class and the probabilities of the first few; logits (classes,)."""
    found = logits.float().softmax(0).topk(min(TOP, len(names)))
    pairs = zip(found.indices.tolist(), found.values.tolist(), strict=True)
    probabilities = {names[label]: round(value, 6) for label, value in pairs}
    return {"class": next(iter(probabilities)), "probabilities": probabilities}


def utterance_logits(expert: Any, feature: Tensor) -> Tensor:
    """Logits (classes,) of S3PRL's experts with a projector and an utterance-level model."""
    length = torch.IntTensor([len(feature)]).to(feature.device)
    return expert.model(expert.projector(feature[None]), length)[0][0]


@of_each
def classify(expert: Any, feature: Tensor) -> Row:
    """sid, ks, er: the class and probabilities."""
    return classified(utterance_logits(expert, feature), expert.test_dataset.names)


@of_each
def classify_intent(expert: Any, feature: Tensor) -> Row:
    """ic: the value of each slot and probabilities."""
    parts = utterance_logits(expert, feature).split(expert.values_per_slot)
    return {slot: classified(part, expert.datarc[INTENTS][slot]) for slot, part in zip(SLOTS, parts, strict=True)}


@of_each
def embed(expert: Any, feature: Tensor) -> Row:
    """asv: the speaker's embedding, of length 1. The score of a trial is the cosine of two."""
    records: dict[int, Tensor] = {}
    expert("test", [feature], [0], records=records)
    return {EMBEDDING: [round(value, 6) for value in records[0].tolist()]}


def diarize(expert: Any, upstream: Upstream, waves: list[Tensor]) -> list[Row]:
    """sd: when each speaker speaks, as (start, end) in seconds. As in S3PRL a recording is cut into pieces, of which
    each begins without memory of the one before."""
    datarc, rows = expert.datarc, []
    shift = datarc["frame_shift"]
    for wave in waves:
        pieces = wave[: len(wave) // shift * shift].split(datarc["chunk_size"] * datarc.get("subsampling", 1) * shift)
        padded = [F.pad(piece, (0, max(0, MIN_SAMPLES - len(piece)))) for piece in pieces]
        features = pad_sequence([upstream([piece])[0][0] for piece in padded], batch_first=True)
        features, _ = expert._match_length(features, features.new_empty(1, len(pieces[0]) // shift))
        active = expert.model(features).sigmoid() > THRESHOLD
        frames = torch.cat([found[: len(piece) // shift] for found, piece in zip(active, pieces, strict=True)])
        seconds = shift / SAMPLE_RATE
        speakers = [
            [[round(begin * seconds, 3), round(end * seconds, 3)] for speaks, begin, end in runs(speaker) if speaks]
            for speaker in frames.T
        ]
        rows.append({"speakers": speakers, "threshold": THRESHOLD})
    return rows


class Classes(list):
    """Stands in for a task's datasets: holds no data, only the names of its classes."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names, self.class_num, self.speaker_num = names, len(names), len(names)


def classes_only(
    find: Callable[[ModuleType, Row, Row], list[str]], *datasets: str, **others: Any
) -> Callable[[ModuleType, Row, Row], contextlib.AbstractContextManager]:
    """``without_corpus`` of a task with these dataset classes; ``others`` are replaced, too."""

    def replaced(expert: ModuleType, config: Row, weights: Row) -> contextlib.AbstractContextManager:
        classes = Classes(find(expert, config, weights))
        return patched_attributes(expert, **dict.fromkeys(datasets, lambda *_, **__: classes), **others)

    return replaced


def speakers_of(expert: ModuleType, config: Row, weights: Row) -> list[str]:
    return mapping_at(config, "downstream_expert", "datarc").get("speakers") or VOXCELEB1


def trained_speakers(expert: ModuleType, config: Row, weights: Row) -> list[str]:
    """One name per speaker of a training, whose weights only the loss needs."""
    sizes = [weight.numel() for name, weight in weights.items() if name.startswith("objective.") and weight.ndim == 2]
    dim = config["downstream_expert"]["modelrc"]["input_dim"]
    return [""] * (max(sizes, default=dim) // dim)


def values_only(expert: Any) -> None:
    """ic's ``get_dataset`` without its tables."""
    settle_values(expert)
    expert.base_path = expert.train_df = expert.valid_df = expert.test_df = None


CTC = Predictor(recognize)
PREDICTORS = {
    S3PRL_DOWNSTREAM[task]: predictor
    for task, predictor in {
        "asr": Predictor(transcribe),
        "pr": CTC,
        "sf": CTC,
        "sid": Predictor(classify, classes_only(speakers_of, "SpeakerClassifiDataset")),
        "ks": Predictor(
            classify,
            classes_only(
                lambda expert, config, weights: expert.CLASSES,
                *("SpeechCommandsDataset", "SpeechCommandsTestingDataset"),
                split_dataset=lambda root: ((), ()),
            ),
            effects=True,
        ),
        "er": Predictor(classify, classes_only(lambda expert, config, weights: list(EMOTIONS), "IEMOCAPDataset")),
        "ic": Predictor(
            classify_intent,
            lambda expert, config, weights: patched_attributes(expert.DownstreamExpert, get_dataset=values_only),
        ),
        "sd": Predictor(diarize),
        "asv": Predictor(
            embed, classes_only(trained_speakers, "SpeakerVerifi_train", "SpeakerVerifi_test"), effects=True
        ),
    }.items()
}
