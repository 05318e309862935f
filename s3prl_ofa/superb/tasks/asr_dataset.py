"""S3PRL's dataset for asr on top of our parser: the same usable utterances as everywhere else, and only known labels.

S3PRL's own dataset parses transcripts itself, cuts the names of utterances at dots, and adds any unknown symbol of a
transcript to its dictionary, although the size of the output layer is already fixed.
"""

import pathlib
from typing import Any

import pandas
import torch
from s3prl.downstream.asr.dataset import HALF_BATCHSIZE_TIME, SAMPLE_RATE, SequenceDataset
from s3prl.downstream.asr.dictionary import Dictionary

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.tasks.corpora import WORD_END, Corpus, chapters, characters, nfc, read_chapters, refuse_unknown

MAKE_BUCKET = "`s3prl-ofa prepare bucket --librispeech ROOT --out DIR`"
REMEDY = (
    "correct the transcripts, or train with a vocabulary of your own: `s3prl-ofa prepare vocabulary --librispeech ROOT "
    "--out DIR` makes it, --vocabulary DIR/char.dict uses it"
)


def read_bucket_file(path: pathlib.Path) -> pandas.DataFrame:
    """The columns file_path and length of a bucket file. Raises UsageError if it is missing or lacks them."""
    if not path.is_file():
        raise UsageError(f"there is no {path}; {MAKE_BUCKET} makes it")
    try:
        # by default pandas takes empty names, and names such as NA, for missing numbers
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
        root, bucket = pathlib.Path(libri_root), pathlib.Path(bucket_file)
        table = pandas.concat([read_bucket_file(bucket / f"{name}.csv") for name in self.split_sets])
        table = table.sort_values(by=["length"], ascending=False)  # not stable, so the order depends on this very call
        rows = {root / row.file_path: row for row in table.itertuples()}
        folders = {path.parent for path in rows if path.parent.is_dir()}
        folders.update(*(chapters(root / name) for name in self.split_sets if (root / name).is_dir()))
        corpus = read_chapters(sorted(folders)).with_usable_audio(split, bucket.parent)
        usable = {utterance.audio: utterance for utterance in corpus.utterances}
        used = {path: usable[path] for path in rows if path in usable}
        found = usable.keys() | corpus.left_out.keys()  # those without audio by their path without a suffix
        gone = [path for path in rows if path not in found and path.parent / nfc(path.stem) not in found]
        new = usable.keys() - rows.keys()
        reasons = dict.fromkeys(gone, f"listed in {bucket_file}, but missing")
        reasons |= dict.fromkeys(new, f"not listed in {bucket_file}; {MAKE_BUCKET} --force lists it")
        corpus = Corpus(list(used.values()), corpus.left_out | reasons)
        corpus.report_left_out(f"{root / '+'.join(self.split_sets)}")

        known = dictionary.indices
        # a | in a text would be taken for the end of a word
        unknown = {
            utterance: (set(characters(utterance.text)) - known.keys()) | ({WORD_END} & set(utterance.text))
            for utterance in corpus.utterances
        }
        refuse_unknown(unknown, "characters that the vocabulary lacks", REMEDY)
        self.Y = {
            rows[path].file_path: torch.tensor([*map(known.__getitem__, characters(used[path].text)), dictionary.eos()])
            for path in used
        }
        self.X: list[list[str]] = []
        kept = [rows[path] for path in used]
        for start in range(0, len(kept), bucket_size):
            batch = kept[start : start + bucket_size]
            names = [row.file_path for row in batch]
            if len(names) == bucket_size >= 2 and max(row.length for row in batch) > HALF_BATCHSIZE_TIME:
                self.X += [names[: bucket_size // 2], names[bucket_size // 2 :]]
            elif len(names) > 1 or bucket_size == 1 or split != "train":
                self.X.append(names)

    def _parse_x_name(self, x: str) -> str:
        """The key of an utterance's labels; S3PRL's method cuts the name at its first dot."""
        return x
