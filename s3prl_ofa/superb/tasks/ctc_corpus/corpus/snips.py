"""Audio SNIPS for SUPERB's slot filling: characters, and a label before and after the words of each slot."""

import pathlib

from s3prl.downstream.ctc.corpus.librispeech import LibriDataset

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.audio import find_audio
from s3prl_ofa.superb.tasks.corpora import Corpus, Utterance, read_lines, refuse_unknown

TEXTS = "all.iob.snips.txt"
LINE = "NAME BOS WORD ... EOS<tab>O SLOT ... INTENT, with O for words outside any slot"
NO_SLOT = "O"
REMEDY = "correct the texts, or add them to the config's vocab_file (--vocabulary FILE) or slots_file"


class SnipsDataset(LibriDataset):
    """The utterances of the folders ``splits`` below ``path``, whose texts and slots are in ``path/all.iob.snips.txt``.

    If the config's corpus has SPLIT_speakers, such as train_speakers, only the utterances whose names begin with one of
    them. Raises UsageError for a line that is not ``LINE``, for a split without usable utterances, and for characters
    and slots that have no label.
    """

    def read(self, splits: list[str], path: str, **corpus) -> list[Utterance]:
        root = pathlib.Path(path)
        texts = read_texts(root / TEXTS)
        found: list[Utterance] = []
        for split in splits:
            speakers = tuple(corpus.get(f"{split}_speakers") or [""])
            files = [audio for audio in find_audio(root / split) if audio.name.startswith(speakers)]
            chosen = Corpus(
                [Utterance(audio, *texts[audio.stem]) for audio in files if audio.stem in texts],
                {audio: f"no line in {TEXTS}" for audio in files if audio.stem not in texts},
            )
            found += chosen.usable(root / split)
        return found

    def check(self, utterances: list[Utterance]) -> None:
        """Raises UsageError for characters and slots that have no label."""
        known = {slot.partition("-")[2] for slot in self.tokenizer.slots} | {NO_SLOT}

        def unknown(text: str) -> set[str]:
            words, slots = (part.split()[1:-1] for part in text.split("\t"))
            characters = {letter for word in words if word not in "?!.,;-&" for letter in word}
            return (set(slots) - known) | {
                letter for letter in characters if self.tokenizer.vocab_to_idx(letter) == self.tokenizer.unk_idx
            }

        found = {utterance: unknown(utterance.text) for utterance in utterances}
        refuse_unknown(found, "characters or slots without a label", REMEDY)


def read_texts(path: pathlib.Path) -> dict[str, tuple[str, str]]:
    """The text with its slots, as S3PRL's tokenizer takes it, and the place of every utterance."""
    if not path.is_file():
        raise UsageError(f"there is no {path}; expected lines {LINE}")
    texts = {}
    for number, line in read_lines(path):
        name, _, text = line.partition(" ")
        words, _, slots = text.partition("\t")
        if not len(words.split()) == len(slots.split()) > 2:
            raise UsageError(f"{path}, line {number}: expected {LINE}, found {line[:80]!r}")
        texts[name] = text, f"{path}, line {number}"
    return texts
