"""Measures the speed of each stage of segmentation without labels, on one core by default.

    python -m benchmarks.guidance

Every stage takes its turn in every round. The audio is noise: speech takes the same time, except that reading depends
on how well a file is compressed. ``median_s`` is wall time; ``cpu_s`` is CPU time, which other load on the machine
hardly affects. k-means runs once per corpus, on 33 minutes at most.
"""

import argparse
import pathlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import soundfile
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from benchmarks.rows import RESULTS, Row, environment, rounded, write
from s3prl_ofa.arguments.guidance import CLUSTERS, LONGEST
from s3prl_ofa.guidance import layout
from s3prl_ofa.guidance.features import Mfcc
from s3prl_ofa.guidance.segmentation import best_segmentation, distances, segment_costs, solve_penalty
from s3prl_ofa.guidance.unsupervised import train_codes
from s3prl_ofa.io.audio import load_audio
from s3prl_ofa.model import SAMPLE_RATE, ModelConfig, OFAWav2Vec2

PACKAGES = ("s3prl-ofa", "torch", "torchaudio", "numpy", "scikit-learn")
UTTERANCES, SECONDS = 12, 12.5  # the mean length in LibriSpeech
HIDDEN_UTTERANCES = 2  # fewer, because a Base model is far slower than the rest
BASE_DIM, LAYER = 768, 6
PERIOD_MS = 90.0
SEGMENTATION = f"segmentation, {CLUSTERS} codes"
Stage = tuple[Callable[[], object], float]  # with the seconds of audio that it processes


def make_stages(folder: pathlib.Path) -> dict[str, Stage]:
    """The stages, with their inputs already computed."""
    numbers = np.random.default_rng(0)
    waves = [0.1 * numbers.standard_normal(round(SECONDS * SAMPLE_RATE)).astype(np.float32) for _ in range(UTTERANCES)]
    paths = [folder / f"{number}.flac" for number in range(UTTERANCES)]
    for path, wave in zip(paths, waves, strict=True):
        soundfile.write(path, wave, SAMPLE_RATE)
    source = Mfcc()
    mfcc = [source(wave) for wave in waves]
    codes = train_codes(mfcc, CLUSTERS, 0)
    frames = layout.num_frames(len(waves[0]))
    wide = [numbers.standard_normal((frames, BASE_DIM)).astype(np.float32) for _ in waves]
    wide_codes = numbers.standard_normal((CLUSTERS, BASE_DIM)).astype(np.float32)
    costs = [segment_costs(distances(features, codes), LONGEST) for features in mfcc]
    penalty, _ = solve_penalty(costs, [len(wave) for wave in waves], PERIOD_MS)
    boundaries = torch.from_numpy(best_segmentation(costs[0], penalty))
    base = OFAWav2Vec2(ModelConfig())

    def segment(features: list[np.ndarray], codes: np.ndarray) -> None:
        for each in features:
            best_segmentation(segment_costs(distances(each, codes), LONGEST), penalty)

    def hidden() -> None:
        with torch.inference_mode():
            for wave in waves[:HIDDEN_UTTERANCES]:
                base.extract([wave], layers=LAYER)

    audio = UTTERANCES * SECONDS
    return {
        "reading FLAC": (lambda: [load_audio(path) for path in paths], audio),
        "MFCC": (lambda: [source(wave) for wave in waves], audio),
        f"hidden states, Base {LAYER}": (hidden, HIDDEN_UTTERANCES * SECONDS),
        "k-means of MFCC": (lambda: train_codes(mfcc, CLUSTERS, 0), audio),
        SEGMENTATION: (lambda: segment(mfcc, codes), audio),
        f"{SEGMENTATION} of {BASE_DIM}": (lambda: segment(wide, wide_codes), audio),
        "writing": (lambda: [layout.write(folder, path.name, boundaries, frames) for path in paths], audio),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "guidance.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder, threadpool_limits(args.threads):
        stages = make_stages(pathlib.Path(folder))
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in stages}
        order = random.Random(0)
        for turn in tqdm(range(args.rounds + 1), unit="round", leave=False):
            for name in order.sample(list(stages), len(stages)):
                begin = time.perf_counter(), time.process_time()
                stages[name][0]()
                if turn:  # the first round warms up
                    taken[name].append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    medians = {name: [statistics.median(each) for each in zip(*pairs, strict=True)] for name, pairs in taken.items()}
    shared = environment(torch.device("cpu"), PACKAGES)
    rows = [
        Row(
            benchmark="guidance",
            contender=name,
            audio_s=stages[name][1],
            median_s=rounded(wall),
            cpu_s=rounded(core),
            rounds=args.rounds,
            dtype="float32",
            **shared,
        )
        for name, (wall, core) in medians.items()
    ]
    write(rows, args.out)


if __name__ == "__main__":
    main()
