"""LibriSpeech in phones, for SUPERB's PR."""

from collections.abc import Sequence

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.corpora import read_lexicon

from .librispeech import LibriDataset

SHOWN_WORDS = 10


class LibriPhoneDataset(LibriDataset):
    """Transcripts become phones, word by word, through the first pronunciation that the lexicon files hold.

    Raises UsageError naming words without a pronunciation, and phones that the tokenizer does not know.
    """

    def __init__(
        self, split: str | Sequence[str], tokenizer, bucket_size: int, lexicon: str | Sequence[str], **corpus
    ) -> None:
        self.lexicon_files = [lexicon] if isinstance(lexicon, str) else list(lexicon)
        self.lexicon = read_lexicon(self.lexicon_files)
        self.unknown_words: set[str] = set()
        super().__init__(split, tokenizer, bucket_size, **corpus)
        if self.unknown_words:
            shown = ", ".join(sorted(self.unknown_words)[:SHOWN_WORDS])
            raise UsageError(
                f"{len(self.unknown_words)} words have no pronunciation in {', '.join(map(str, self.lexicon_files))}: "
                f"{shown}{', ...' if len(self.unknown_words) > SHOWN_WORDS else ''}; "
                f"`s3prl-ofa prepare lexicon` makes a lexicon of all words of a corpus"
            )

    def labels(self, text: str) -> list[int]:
        """The ids of a transcript's phones and of the end sign; words without pronunciation are collected."""
        words = text.upper().split()
        missing = [word for word in words if word not in self.lexicon]
        if missing:
            self.unknown_words.update(missing)
            return []
        ids = self.tokenizer.encode(" ".join(phone for word in words for phone in self.lexicon[word]))
        if self.tokenizer.unk_idx in ids:
            for word in words:
                if self.tokenizer.unk_idx in self.tokenizer.encode(" ".join(self.lexicon[word])):
                    raise UsageError(
                        f"the lexicon gives {word} the phones {' '.join(self.lexicon[word])}, and the config's "
                        f"vocab_file does not know all of them (vowels carry their stress, as in AH0)"
                    )
        return ids
