"""Measures how much of the model's own rate `s3prl-ofa extract` keeps on a folder of real files.

    python -m benchmarks.corpus FOLDER --files 500 --dtype bfloat16

The command reads, batches, extracts and writes all files in this process, so the start of Python is not counted, but
reading the checkpoint is. The model alone is timed on some of the same batches, read beforehand, once before the
command and once after it. Weights are random, of Base size.
"""

import argparse
import pathlib
import sys
import tempfile
import time

import torch

from benchmarks.extract import DTYPES, PACKAGES, SIZES, add_model_arguments, random_model
from benchmarks.rows import RESULTS, Row, environment, rounded, write
from s3prl_ofa import cli, load
from s3prl_ofa.arguments.extract import BATCH_SECONDS
from s3prl_ofa.extract.inputs import find_utterances, make_batches
from s3prl_ofa.io.audio import SAMPLE_RATE, duration, load_audio
from s3prl_ofa.model import OFAWav2Vec2

EVERY = 5  # the model alone is timed on every fifth of the command's batches


def seconds_of(model: OFAWav2Vec2, batches: list[list]) -> float:
    """Seconds of the model alone."""
    begin = time.perf_counter()
    for waves in batches:
        model.extract(waves)
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    add_model_arguments(parser)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "corpus.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    utterances = find_utterances([args.folder])
    chosen = utterances[:: max(1, len(utterances) // args.files)][: args.files]
    batches = list(make_batches([(each, duration(each.path)) for each in chosen], BATCH_SECONDS))[::EVERY]
    waves = [[load_audio(each.path) for each, _ in batch] for batch in batches]
    alone_s = sum(len(wave) for batch in waves for wave in batch) / SAMPLE_RATE
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, out = pathlib.Path(folder, "model.safetensors"), pathlib.Path(folder, "out")
        random_model(SIZES[args.size]).save(checkpoint)
        command = ["extract", *(str(each.path) for each in chosen), "--ckpt", str(checkpoint), "--out", str(out)]
        model = load(checkpoint, device, args.dtype)
        seconds_of(model, waves[:1])  # warms up
        before = seconds_of(model, waves)
        begin = time.perf_counter()
        if cli.main([*command, "--device", args.device, "--dtype", args.dtype]):
            sys.exit("extract failed")
        whole = time.perf_counter() - begin
        after = seconds_of(model, waves)
    shared = {"benchmark": "corpus", "dtype": args.dtype, **environment(device, PACKAGES)}
    audio_s = sum(duration(each.path) for each in chosen)
    taken = {"model alone": (2 * alone_s, before + after), f"extract, {len(chosen)} files": (audio_s, whole)}
    rows = [
        Row(contender=name, audio_s=round(audio, 2), median_s=rounded(seconds), rounds=1, **shared)
        for name, (audio, seconds) in taken.items()
    ]
    write(rows, args.out)


if __name__ == "__main__":
    main()
