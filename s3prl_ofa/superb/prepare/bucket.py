"""For asr: the length of every utterance, in the files that S3PRL makes its batches from."""

import pathlib

import pandas

from s3prl_ofa.superb.prepare.output import Output


def write_bucket_files(output: Output, librispeech: pathlib.Path, splits: list[str] | None) -> None:
    """Writes a CSV per split, like S3PRL's script: file_path (below LibriSpeech), length (samples); longest first."""
    for split in output.splits(librispeech, splits):

        def make(split: str = split) -> tuple[str, str]:
            samples = {utterance.audio: count for utterance, count in output.usable_utterances(librispeech, [split])}
            rows = sorted(samples.items(), key=lambda item: (-item[1], item[0]))
            paths = [(audio.relative_to(librispeech).as_posix(), count) for audio, count in rows]
            table = pandas.DataFrame(paths, columns=["file_path", "length"])
            return table.to_csv(index=False), f"{len(rows)} utterances"

        output.write(f"bucket/{split}.csv", make)
