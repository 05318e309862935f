"""LibriSpeech in phones, for SUPERB's phone recognition."""

import pathlib
from collections.abc import Sequence

from s3prl.downstream.ctc.corpus.librispeech import LibriDataset

from s3prl_ofa.superb.tasks.corpora import Utterance, read_lexicon, refuse_unknown, upper_case

MAKE_LEXICON = (
    "`s3prl-ofa prepare lexicon` makes a lexicon of all words of a corpus, with --lexicon FILE for those that it "
    "cannot pronounce"
)
MAKE_VOCABULARY = (
    "vowels carry their stress, as in AH0; for phones of your own, `s3prl-ofa prepare vocabulary --librispeech ROOT "
    "--lexicon FILE --out DIR` makes a vocabulary, --vocabulary DIR/phoneme.txt uses it"
)


class LibriPhoneDataset(LibriDataset):
    """Transcripts become phones, word by word, through the first pronunciation that the lexicon files hold.

    Raises UsageError naming words without a pronunciation, and phones that the tokenizer does not know.
    """

    def __init__(
        self, split: str | Sequence[str], tokenizer, bucket_size: int, lexicon: str | Sequence[str], **corpus
    ) -> None:
        self.lexicon_files = [lexicon] if isinstance(lexicon, str) else list(lexicon)
        self.prepared = next((pathlib.Path(file).parent for file in self.lexicon_files), None)
        self.lexicon = read_lexicon(self.lexicon_files)
        super().__init__(split, tokenizer, bucket_size, **corpus)

    def check(self, utterances: list[Utterance]) -> None:
        """Raises UsageError for words without a pronunciation, and for words with phones that have no label."""
        words = {utterance: set(upper_case(utterance.text).split()) for utterance in utterances}
        files = ", ".join(map(str, self.lexicon_files))
        missing = {utterance: found - self.lexicon.keys() for utterance, found in words.items()}
        refuse_unknown(missing, f"words without a pronunciation in {files}", MAKE_LEXICON)
        phones = {word: " ".join(self.lexicon[word].phones) for word in set().union(*words.values())}
        strange = {
            word: f"{word} ({text}, {self.lexicon[word].source})" for word, text in phones.items() if self.lacks(text)
        }
        unknown = {utterance: {strange[word] for word in found & strange.keys()} for utterance, found in words.items()}
        refuse_unknown(unknown, "words with phones that the config's vocab_file lacks", MAKE_VOCABULARY)

    def labels(self, text: str) -> list[int]:
        """The ids of a transcript's phones and of the end-of-sequence symbol."""
        words = upper_case(text).split()
        return self.tokenizer.encode(" ".join(phone for word in words for phone in self.lexicon[word].phones))
