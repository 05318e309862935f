"""For asr and pr: vocabularies of the characters of a corpus and of the phones of a lexicon, to replace SUPERB's."""

import pathlib
from collections import Counter

from s3prl_ofa.superb.prepare.output import Output
from s3prl_ofa.superb.tasks.corpora import WORD_END, characters, read_lexicon, refuse_unknown


def write_vocabularies(
    output: Output, librispeech: pathlib.Path, splits: list[str] | None, lexicons: list[str]
) -> None:
    """Writes fairseq's dictionary for asr: lines of a character and its count, the most frequent first.

    With lexicons also lines of one phone each, in alphabetical order, for pr.
    """

    def make_characters() -> tuple[str, str]:
        found = [utterance for utterance, _ in output.usable_utterances(librispeech, splits)]
        refuse_unknown(
            {utterance: {WORD_END} & set(utterance.text) for utterance in found},
            "the label between words in their text",
            "remove it",
        )
        counts = Counter(character for utterance in found for character in characters(utterance.text))
        lines = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        text = "".join(f"{character} {count}\n" for character, count in lines)
        return text, f"{len(lines)} characters of {len(found)} utterances"

    def make_phones() -> tuple[str, str]:
        phones = sorted({phone for entry in read_lexicon(lexicons).values() for phone in entry.phones})
        return "".join(f"{phone}\n" for phone in phones), f"{len(phones)} phones"

    if lexicons:
        output.write("phoneme.txt", make_phones)
    output.write("char.dict", make_characters)
