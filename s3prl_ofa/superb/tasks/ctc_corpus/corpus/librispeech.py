"""LibriSpeech for ``s3prl.downstream.ctc``, with the interface that its ``data.create_dataset`` expects."""

import csv
import pathlib
from collections.abc import Sequence

from torch.utils.data import Dataset

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.tasks.corpora import Corpus, Utterance, read_lines, read_split, refuse_unknown

USE_VOCABULARY = "correct the transcripts, or train with a vocabulary that has them (--vocabulary FILE)"


class LibriDataset(Dataset):
    """Utterances with their labels, longest label sequence first, one by one or in buckets of similar length.

    split: names of folders below ``path``; or, with ``csv_dir``, the name of a file in it with the columns wav_path and
    transcription, the other form that S3PRL's configs use. bucket_size: 1 gives (audio path, label ids) for an index,
    more gives a list of that many neighbors from there on. file_list, text: all paths and all label ids, in order.
    prepared: the output folder of ``prepare``, if there is one. Utterances that cannot be used are left out and logged.
    Raises UsageError if a split is missing or has none that can be used, and for labels that the tokenizer does not
    know.
    """

    prepared: pathlib.Path | None = None

    def __init__(
        self, split: str | Sequence[str], tokenizer, bucket_size: int, ascending: bool = False, **corpus
    ) -> None:
        self.tokenizer = tokenizer
        self.bucket_size = bucket_size
        utterances = self.read([split] if isinstance(split, str) else list(split), **corpus)
        self.check(utterances)
        labeled = [(str(utterance.audio), self.labels(utterance.text)) for utterance in utterances]
        labeled.sort(key=lambda item: len(item[1]), reverse=not ascending)
        self.file_list = [audio for audio, _ in labeled]
        self.text = [labels for _, labels in labeled]

    def read(self, splits: list[str], path: str | None = None, csv_dir: str | None = None, **unused) -> list[Utterance]:
        """The usable utterances of these splits. Raises UsageError for a config that names no corpus."""
        if csv_dir is not None:
            return sum((read_transcription_table(pathlib.Path(csv_dir, split)) for split in splits), [])
        if path is None:
            raise UsageError("the config's corpus has neither a path nor a csv_dir")
        folders = [pathlib.Path(path, split) for split in splits]
        return sum((read_split(folder).usable(folder, self.prepared) for folder in folders), [])

    def lacks(self, text: str) -> bool:
        """Whether the tokenizer has no label for a part of a text."""
        return self.tokenizer.unk_idx in self.tokenizer.encode(text)

    def check(self, utterances: list[Utterance]) -> None:
        """Raises UsageError for characters, or words with a tokenizer of words, that have no label."""

        def unknown(text: str) -> set[str]:
            pieces = text if self.tokenizer.token_type == "character" else text.split()
            return set(filter(self.lacks, pieces)) if self.lacks(text) else set()

        found = {utterance: unknown(utterance.text) for utterance in utterances}
        refuse_unknown(found, "labels that the config's vocab_file lacks", USE_VOCABULARY)

    def labels(self, text: str) -> list[int]:
        """The ids that S3PRL's tokenizer gives to a transcript."""
        return self.tokenizer.encode(text)

    def __len__(self) -> int:
        return len(self.file_list)

    def __getitem__(self, index: int) -> tuple[str, list[int]] | list[tuple[str, list[int]]]:
        if self.bucket_size <= 1:
            return self.file_list[index], self.text[index]
        # the last buckets are filled from the front, so that every one is full
        start = max(0, min(index, len(self) - self.bucket_size))
        stop = start + self.bucket_size
        return list(zip(self.file_list[start:stop], self.text[start:stop], strict=True))


def read_transcription_table(path: pathlib.Path) -> list[Utterance]:
    """The usable utterances of a CSV. Raises UsageError when the file or one of its two columns is missing."""
    if not path.is_file():
        raise UsageError(f"there is no table of utterances {path}")
    read_lines(path)  # raises UsageError if it is not UTF-8
    corpus = Corpus()
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, restval="")
        if not {"wav_path", "transcription"} <= set(reader.fieldnames or ()):
            raise UsageError(f"{path} must have the columns wav_path and transcription")
        for row in reader:
            audio, source = pathlib.Path(row["wav_path"]), f"{path}, line {reader.line_num}"
            if row["transcription"].strip():
                corpus.utterances.append(Utterance(audio, row["transcription"], source))
            else:
                corpus.left_out[audio] = f"no text in {source}"
    return corpus.usable(path)
