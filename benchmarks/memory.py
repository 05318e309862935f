"""Measures the memory that a batch takes at each lambd, beyond the loaded model.

    python -m benchmarks.memory CHECKPOINT AUDIO

Each lambd runs in a process of its own, and all hidden states are kept, as S3PRL's tasks read them.
"""

import argparse
import dataclasses
import itertools
import multiprocessing
import pathlib

import torch

import s3prl_ofa
from benchmarks.rows import RESULTS, Row, environment, peak_mib, write
from s3prl_ofa.extract.inputs import find_utterances
from s3prl_ofa.io.audio import SAMPLE_RATE, load_audio

LAMBDS = (0.0, 0.5, 0.75, 1.0)


def measured(checkpoint: str, paths: list[str], lambd: float, threads: int) -> Row:
    torch.set_num_threads(threads)
    device = torch.device("cpu")
    model, waves = s3prl_ofa.load(checkpoint), [torch.from_numpy(load_audio(path)) for path in paths]
    before = peak_mib(device)
    frames = int(model.extract(waves, lambd=lambd).lengths.sum())
    return Row(
        benchmark="memory",
        contender=f"lambd {lambd:g}",
        audio_s=round(sum(map(len, waves)) / SAMPLE_RATE, 2),
        median_s=0.0,
        rounds=1,
        dtype="float32",
        frames=frames,
        peak_mib=peak_mib(device) - before,
        **environment(device, ("s3prl-ofa", "torch")),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("audio", type=pathlib.Path, help="folder")
    parser.add_argument("--utterances", type=int, default=32)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "memory.csv")
    args = parser.parse_args()
    paths = [str(each.path) for each in itertools.islice(find_utterances([args.audio]), args.utterances)]
    rows = []
    for lambd in LAMBDS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            rows.append(pool.apply(measured, (args.checkpoint, paths, lambd, args.threads)))
    write([dataclasses.replace(row, run=rows[0].run) for row in rows], args.out)


if __name__ == "__main__":
    main()
