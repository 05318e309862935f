"""Compares widths and depths: the start of several networks, each for the same few minutes of one core.

    python benchmarks/tiny_checkpoint/trials.py CORPUS OUT --csv trials.csv

A trial is `start.py`, whose learning rate decays to zero within those minutes of CPU time, so that other load on the
machine matters little. What counts is the frame accuracy of the phone classifier on dev speakers, whose labels it does
not see. If it is stopped at any time, the same command resumes.
"""

import argparse
import csv
import pathlib
import subprocess
import sys

from fairseq.models.wav2vec import Wav2Vec2Config, Wav2Vec2Model
from network import settings_of

from s3prl_ofa.io.files import atomic_path

NETWORKS = (  # convolutions, layers and width of the encoder
    ("tapered", 6, 256),
    ("tapered", 3, 384),
    ("tapered", 4, 320),
    ("tapered", 6, 320),
    ("tapered", 12, 192),
    ("even", 6, 256),
)
START = pathlib.Path(__file__).with_name("start.py")


def trial(network: tuple[str, int, int], args: argparse.Namespace) -> dict[str, object]:
    """Runs one trial and returns its row of the table."""
    convolutions, layers, width = network
    out = args.out / f"{convolutions}_{layers}x{width}"
    size = ["--network", convolutions, "--layers", str(layers), "--width", str(width)]
    budget = ["--minutes", str(args.minutes), "--threads", "1", "--clock", "cpu", "--seed", str(args.seed)]
    subprocess.run([sys.executable, START, args.corpus, out, *size, *budget], check=True)
    with open(out / "log.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    parameters = sum(one.numel() for one in Wav2Vec2Model(Wav2Vec2Config(**settings_of(*network))).parameters())
    names = ("phone_loss", "front_loss", "middle_loss", "dev_accuracy")
    return {
        "convolutions": convolutions,
        "layers": layers,
        "width": width,
        "parameters": parameters,
        "core_minutes": args.minutes,
        "seed": args.seed,
        "updates": last["update"],
        **{name: last[name] for name in names},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--csv", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0, help="minutes of one core per network")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows: list[dict[str, object]] = []
    for network in NETWORKS:
        rows.append(trial(network, args))
        with atomic_path(args.csv) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
