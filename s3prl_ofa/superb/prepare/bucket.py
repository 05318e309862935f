"""For asr: the length of every utterance, in the files that S3PRL makes its batches from."""

import csv
import pathlib

from s3prl_ofa.superb.prepare.output import Output
from s3prl_ofa.superb.tasks.corpora import corpus_root


def write_bucket_files(output: Output, librispeech: str, splits: list[str] | None) -> None:
    """One CSV per split with file_path (below LibriSpeech) and length (samples), longest first, as S3PRL's script."""
    root = corpus_root(librispeech, "--librispeech", "LibriSpeech")
    for split in output.splits(root, splits):

        def write(path: pathlib.Path, split: str = split) -> str:
            samples = {utterance.audio: count for utterance, count in output.usable_utterances(root, [split])}
            rows = sorted(samples.items(), key=lambda item: (-item[1], item[0]))
            with open(path, "w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["file_path", "length"])
                writer.writerows([audio.relative_to(root).as_posix(), count] for audio, count in rows)
            return f"{len(rows)} utterances"

        output.write(f"bucket/{split}.csv", write)
