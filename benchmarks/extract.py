"""Measures the speed of extraction against other wav2vec 2.0s of the same size, all with random weights.

    python benchmarks/extract.py --threads 2 --dtype float32

Every contender does the same work (all hidden states of the same wave, same dtype, same threads) and takes its turn in
every round, so that other load on the machine affects all alike. Each row is written to the csv as soon as it is
measured: the median over rounds, its ratio to a row of the same run, and the machine.

On a CPU that is busy with other work, threads wait for each other, and short parallel regions suffer most. There

    OMP_WAIT_POLICY=passive python benchmarks/extract.py --threads 2 --clock cpu

counts the CPU time of the main thread, which does its share of all parallel work and everything else: close to the wall
time on an idle machine.
"""

import argparse
import importlib.metadata
import os
import pathlib
import random
import statistics
import time
from collections.abc import Callable

import torch
from rows import machine, write
from torch import Tensor
from tqdm import tqdm

from s3prl_ofa.model import SAMPLE_RATE, ModelConfig, OFAWav2Vec2
from s3prl_ofa.superb.compat.shims import apply_shims

RESULTS = pathlib.Path(__file__).parent / "results" / "extract.csv"
PACKAGES = ("torch", "torchaudio", "transformers", "s3prl")
SECONDS = 10.0
PERIODS_MS = (40.0, 60.0, 90.0)
# The logit of a trained model's mean alpha, 2/9, so that lambd 1 gives 90 ms.
TRAINED_LOGIT = -1.2528
RAGGED = (1.0, 20.0, 16)  # seconds of the shortest, seconds of the longest, utterances
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
Contender = Callable[[], object]


def ours(dtype: torch.dtype, device: torch.device) -> OFAWav2Vec2:
    """Base with a compressor."""
    model = OFAWav2Vec2(ModelConfig(compressor="cif")).to(device, dtype)
    with torch.no_grad():
        model.compressor.alpha_fn.layer[2].weight.mul_(0.1)
        model.compressor.alpha_fn.layer[2].bias.fill_(TRAINED_LOGIT)
    return model


def peers(dtype: torch.dtype, device: torch.device) -> dict[str, Callable[[Tensor], object]]:
    """The others' wav2vec 2.0 Base, which has no compressor: a function of waves (batch, samples) each."""
    from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Config as S3PRLConfig
    from s3prl.upstream.wav2vec2.wav2vec2_model import Wav2Vec2Model as S3PRLModel
    from torchaudio.models import wav2vec2_base
    from transformers import Wav2Vec2Config, Wav2Vec2Model

    transformers_model = Wav2Vec2Model(Wav2Vec2Config()).eval().to(device, dtype)
    torchaudio_model = wav2vec2_base().eval().to(device, dtype)
    s3prl_config = S3PRLConfig(quantize_targets=True, final_dim=256)
    s3prl_model = S3PRLModel(s3prl_config).eval().to(device, dtype)
    return {
        "transformers": lambda waves: transformers_model(waves, output_hidden_states=True),
        "torchaudio": lambda waves: torchaudio_model.extract_features(waves),
        "s3prl": lambda waves: s3prl_model(waves, padding_mask=None, mask=False, features_only=True),
    }


def measure(
    contenders: dict[str, Contender], rounds: int, device: torch.device, now: Callable[[], float]
) -> dict[str, list[float]]:
    """Seconds of each contender in each round, by the clock ``now``, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    names, order = list(contenders), random.Random(0)
    for turn in tqdm(range(rounds + 1), unit="round", leave=False):
        # A new order in every round, not only another start, so that no contender always follows the same one.
        for name in order.sample(names, len(names)):
            run = contenders[name]
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            begin = now()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if turn:
                seconds[name].append(now() - begin)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=9, help="for 10 s of audio; fewer for more audio, but at least 3")
    parser.add_argument("--only", choices=("peers", "rates", "batch"), help="run only one of the three comparisons")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: CPU time of the main thread")
    args = parser.parse_args()
    # OpenMP reads its settings only once, when torch is imported.
    if args.clock == "cpu" and (args.device != "cpu" or os.environ.get("OMP_WAIT_POLICY", "").lower() != "passive"):
        parser.error("--clock cpu is for --device cpu and needs OMP_WAIT_POLICY=passive, else waiting counts as work")
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    apply_shims()
    model = ours(dtype, device)
    common = {
        "dtype": args.dtype,
        "device": args.device,
        "threads": args.threads,
        "clock": args.clock,
        "machine": machine(device),
        **{package: importlib.metadata.version(package) for package in PACKAGES},
    }

    def record(benchmark: str, contenders: dict[str, Contender], audio: float, ratio_to: Callable[[dict], str]) -> None:
        if args.only not in (None, benchmark):
            return
        rounds = max(3, round(args.rounds * SECONDS / max(SECONDS, audio)))
        seconds = measure(contenders, rounds, device, CLOCKS[args.clock])
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        base = ratio_to(medians)
        rows = [
            {
                "benchmark": benchmark,
                "contender": name,
                "audio_s": round(audio, 2),
                "median_s": round(median, 4),
                "ratio": round(median / medians[base], 3),
                "ratio_to": base,
                "rounds": rounds,
                **common,
            }
            for name, median in medians.items()
        ]
        write(rows, args.out)

    with torch.inference_mode():
        wave = 0.1 * torch.randn(int(SECONDS * SAMPLE_RATE), device=device)
        batch = wave[None].to(dtype)
        record(
            "peers",
            {"ours": lambda: model.extract([wave])}
            | {name: (lambda run=run: run(batch)) for name, run in peers(dtype, device).items()},
            SECONDS,
            lambda medians: min((name for name in medians if name != "ours"), key=medians.get),
        )
        record(
            "rates",
            {"ours 20 ms": lambda: model.extract([wave])}
            | {
                f"ours {period:g} ms": lambda period=period: model.extract(
                    [wave], frame_period_ms=period, allow_beyond_one=True
                )
                for period in PERIODS_MS
            },
            SECONDS,
            lambda medians: "ours 20 ms",
        )
        shortest, longest, count = RAGGED
        lengths = torch.linspace(shortest, longest, count)
        ragged = [0.1 * torch.randn(int(length * SAMPLE_RATE), device=device) for length in lengths.tolist()]
        equal = [0.1 * torch.randn(int(lengths.mean() * SAMPLE_RATE), device=device) for _ in range(count)]
        record(
            "batch",
            {"ours equal lengths": lambda: model.extract(equal), "ours 1 to 20 s": lambda: model.extract(ragged)},
            float(lengths.sum()),
            lambda medians: "ours equal lengths",
        )


if __name__ == "__main__":
    main()
