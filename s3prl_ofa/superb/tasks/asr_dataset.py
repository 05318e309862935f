"""S3PRL's dataset for asr, fed by our parser: the same usable utterances as everywhere else, and only known labels.

S3PRL's own dataset parses transcripts itself, cuts the names of utterances at dots, and adds whatever it finds in a
transcript to its dictionary, although the size of the output layer is already fixed.
"""

import pathlib
from collections.abc import Container
from typing import Any

import pandas
import torch
from s3prl.downstream.asr.dataset import HALF_BATCHSIZE_TIME, SAMPLE_RATE, SequenceDataset
from s3prl.downstream.asr.dictionary import Dictionary

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.tasks.corpora import (
    WORD_END,
    Found,
    chapters,
    check_audio,
    composed,
    letters,
    read_chapters,
    refuse_unknown,
    report_left_out,
)

MAKE_BUCKET = "`s3prl-ofa prepare bucket --librispeech ROOT --out DIR`"
CURE = (
    "correct the transcripts, or train with a vocabulary of your own: `s3prl-ofa prepare vocabulary --librispeech ROOT "
    "--out DIR` makes it, --vocabulary DIR/char.dict uses it"
)


def unknown_letters(text: str, known: Container[str]) -> set[str]:
    """The labels of a transcript that are not known; a ``|`` in the text would be taken for the end of a word."""
    return {letter for letter in letters(text) if letter not in known} | ({WORD_END} & set(text))


def read_table(path: pathlib.Path) -> pandas.DataFrame:
    """The columns file_path and length of a bucket file. Raises UsageError if it is missing or lacks them."""
    if not path.is_file():
        raise UsageError(f"there is no {path}; {MAKE_BUCKET} makes it")
    try:
        # without its default pandas takes empty names, and names such as NA, for numbers
        table = pandas.read_csv(path, dtype={"file_path": str}, keep_default_na=False)[["file_path", "length"]]
        if table["length"].astype(float).isna().any():
            raise ValueError("a length that is NaN")
    except (ValueError, KeyError) as error:  # pandas' ParserError is a ValueError
        raise UsageError(
            f"{path}: expected the columns file_path and length (samples), found {' '.join(str(error).split())}; "
            f"{MAKE_BUCKET} --force makes it again"
        ) from None
    return table


class AsrDataset(SequenceDataset):
    """S3PRL's batches (files below ``libri_root``, longest first) and labels, of the utterances that can be used.

    Their order and lengths are those of ``bucket_file``/SPLIT.csv; usable ones that are not listed there are left out
    and logged like unusable ones. As in S3PRL, a last batch of one utterance is not trained on. Raises UsageError for
    a table that cannot be used, if no utterance can be used, and for characters that ``dictionary`` lacks.
    """

    def __init__(
        self, split: str, bucket_size: int, dictionary: Dictionary, libri_root: str, bucket_file: str, **datarc: Any
    ) -> None:
        self.dictionary, self.libri_root, self.sample_rate = dictionary, libri_root, SAMPLE_RATE
        self.split_sets = [datarc[split]] if isinstance(datarc[split], str) else datarc[split]
        root = pathlib.Path(libri_root)
        table = pandas.concat([read_table(pathlib.Path(bucket_file, f"{name}.csv")) for name in self.split_sets])
        table = table.sort_values(by=["length"], ascending=False)  # not stable, so the order depends on this very call
        listed = {root / row.file_path: row for row in table.itertuples()}
        places = {path.parent for path in listed if path.parent.is_dir()}
        places.update(*(chapters(root / name) for name in self.split_sets if (root / name).is_dir()))
        found = check_audio(read_chapters(sorted(places)), split)
        there = {utterance.audio: utterance for utterance in found.utterances}
        used = {path: there[path] for path in listed if path in there}
        named = there.keys() | found.left_out.keys()  # those without audio by their path without a suffix
        gone = [path for path in listed if path not in named and path.parent / composed(path.stem) not in named]
        found.left_out.update(dict.fromkeys(gone, f"listed in {bucket_file}, but not there"))
        new = there.keys() - listed.keys()
        found.left_out.update(dict.fromkeys(new, f"not listed in {bucket_file}; {MAKE_BUCKET} --force lists it"))
        report_left_out(Found(list(used.values()), found.left_out), f"{root / '+'.join(self.split_sets)}")

        known = dictionary.indices
        unknown = {utterance: unknown_letters(utterance.text, known) for utterance in used.values()}
        refuse_unknown(unknown, "characters that the vocabulary lacks", CURE)
        self.Y = {
            listed[path].file_path: torch.tensor([*map(known.__getitem__, letters(utterance.text)), dictionary.eos()])
            for path, utterance in used.items()
        }
        self.X: list[list[str]] = []
        rows = [listed[path] for path in used]
        for start in range(0, len(rows), bucket_size):
            batch = rows[start : start + bucket_size]
            names = [row.file_path for row in batch]
            if len(names) == bucket_size >= 2 and max(row.length for row in batch) > HALF_BATCHSIZE_TIME:
                self.X += [names[: bucket_size // 2], names[bucket_size // 2 :]]
            elif len(names) > 1 or bucket_size == 1 or split != "train":
                self.X.append(names)

    def _parse_x_name(self, x: str) -> str:
        """The key of an utterance's labels; S3PRL's own cuts the name at its first dot."""
        return x
