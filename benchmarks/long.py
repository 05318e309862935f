"""Measures time and peak memory of extraction from long audio.

    python -m benchmarks.long --minutes 1 4 15 60 --window-s 30 --dtype bfloat16

Each length runs in a separate process, which separates peak memory; it includes the model, the wave and the last hidden
state. Each is one call of ``extract`` with random weights of Base size, after a short warm-up call.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import time

import torch

from benchmarks.extract import DTYPES, PACKAGES, SIZES, add_model_arguments, noise, our_contender, ours
from benchmarks.rows import RESULTS, Row, environment, peak_mib, rounded, write

WARM_UP_S = 2.0


def measured(args: argparse.Namespace) -> Row:
    """One length, in this process."""
    device = torch.device(args.device)
    model = ours(SIZES[args.size], args.dtype, device)
    name = f"ours, {args.period_ms:g} ms" + (f", windows of {args.window_s:g} s" if args.window_s else "")
    wave = noise([60 * args.minutes[0]], device)
    options = {"layers": [model.config.layers], "window_s": args.window_s}
    with torch.inference_mode():
        our_contender("", "", model, noise([WARM_UP_S], device), args.period_ms, args.dtype, **options)
        begin = time.perf_counter()
        # Building the contender extracts once, which is what is measured.
        found = our_contender("long", name, model, wave, args.period_ms, args.dtype, **options)
        taken = time.perf_counter() - begin
    return Row(
        benchmark="long",
        contender=found.name,
        audio_s=found.audio_s,
        median_s=rounded(taken),
        rounds=1,
        dtype=args.dtype,
        frames=found.frames,
        # Counted for attention over the whole file.
        gmac=None if args.window_s else rounded(found.macs / 1e9),
        gflops=None if args.window_s else rounded(2e-9 * found.macs / taken),
        peak_mib=peak_mib(device),
        **environment(device, PACKAGES),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", nargs="+", type=float, default=[1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--period-ms", type=float, default=20.0)
    parser.add_argument("--window-s", type=float, metavar="S", help="attention in windows; the whole file by default")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    add_model_arguments(parser)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "long.csv")
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.in_this_process:
        print(json.dumps(dataclasses.asdict(measured(args))))
        return
    run = environment(torch.device("cpu"), ())["run"]
    for minutes in args.minutes:
        command = [sys.executable, "-m", "benchmarks.long", "--in-this-process", "--minutes", str(minutes)]
        for option in ("period_ms", "dtype", "size", "device", "threads"):
            command += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
        if args.window_s:
            command += ["--window-s", str(args.window_s)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        write([Row(**json.loads(done.stdout.splitlines()[-1]) | {"run": run})], args.out)


if __name__ == "__main__":
    main()
