"""Measures the time of extraction against the frame period, from 20 to 90 ms.

    python -m benchmarks.cost_curve --dtypes float32 bfloat16

All periods take turns on one wave of 10 s, with random weights of Base size. ``python -m benchmarks.report`` draws the
curve of the last run, and that of the multiply-accumulates.
"""

import argparse
import pathlib

import torch

from benchmarks.extract import DTYPES, PACKAGES, SCALE, SIZES, add_model_arguments, contenders, make_inputs, ours
from benchmarks.rows import RESULTS, compare, environment, write

PERIODS_MS = (20.0, 22.5, 25.0, 30.0, 35.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    add_model_arguments(parser)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "cost_curve.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    device = torch.device(args.device)
    models = {dtype: ours(SIZES[args.size], dtype, device) for dtype in args.dtypes}
    waves = make_inputs("single", SCALE[args.size], device)
    with torch.inference_mode():
        curve = list(contenders("cost curve", waves, models, (), PERIODS_MS))
        write(compare(curve, args.rounds, device, environment(device, PACKAGES)), args.out)


if __name__ == "__main__":
    main()
