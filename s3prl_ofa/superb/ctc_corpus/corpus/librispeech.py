"""LibriSpeech for ``s3prl.downstream.ctc``: what its ``data.create_dataset`` asks of a corpus."""

import csv
import pathlib
from collections.abc import Sequence

from torch.utils.data import Dataset

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.corpora import read_split


class LibriDataset(Dataset):
    """Utterances with their labels, longest label sequence first, one by one or in buckets of similar length.

    split: names of folders below ``path``; or, with ``csv_dir``, the name of a file in it with the columns wav_path and
    transcription, the other form that S3PRL's configs use. bucket_size: 1 gives (audio path, label ids) for an index,
    more gives a list of so many neighbours beginning there. file_list, text: all paths and all label ids, in order.
    Raises UsageError when a split is missing or empty.
    """

    def __init__(
        self,
        split: str | Sequence[str],
        tokenizer,
        bucket_size: int,
        path: str | None = None,
        csv_dir: str | None = None,
        ascending: bool = False,
        **unused,
    ) -> None:
        self.tokenizer = tokenizer
        self.bucket_size = bucket_size
        if csv_dir is not None:
            utterances = read_table(pathlib.Path(csv_dir, str(split)))
        elif path is not None:
            names = [split] if isinstance(split, str) else split
            utterances = [utterance for name in names for utterance in read_split(pathlib.Path(path, name))]
        else:
            raise UsageError("the config's corpus has neither a path nor a csv_dir")
        labelled = [(str(audio), self.labels(text)) for audio, text in utterances]
        labelled.sort(key=lambda item: len(item[1]), reverse=not ascending)
        self.file_list = [audio for audio, _ in labelled]
        self.text = [labels for _, labels in labelled]

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


def read_table(path: pathlib.Path) -> list[tuple[str, str]]:
    """(audio path, text) of the rows of a CSV. Raises UsageError when the file or one of its two columns is missing."""
    if not path.is_file():
        raise UsageError(f"there is no table of utterances {path}")
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"wav_path", "transcription"} <= rows[0].keys():
        raise UsageError(f"{path} must have the columns wav_path and transcription, and at least one row")
    return [(row["wav_path"], row["transcription"]) for row in rows]
