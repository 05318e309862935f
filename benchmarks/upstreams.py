"""Times the upstream of each setting of the evidence, on a machine with nothing else to do.

    python -m benchmarks.upstreams AUDIO --threads 1

The times in the rows of a sweep come from points that run side by side, some of them on another day. Here all settings
take turns at the same utterances, as S3PRL's upstreams. Checkpoints are where the rows say, from the project's folder.
"""

import argparse
import functools
import json
import math
import pathlib
from typing import Any

import torch

from benchmarks.rows import RESULTS, Contender, compare, environment, write
from s3prl_ofa.extract.inputs import find_utterances
from s3prl_ofa.io.audio import SAMPLE_RATE, load_audio
from s3prl_ofa.superb.downstream.experiment import s3prl_set_up
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE
from s3prl_ofa.sweep.job import RATE_NAMES, Point, exact

PACKAGES = ("s3prl-ofa", "torch", "s3prl")
WITHOUT_EFFECT = ("output_frames", "repeat", "lambd_start", "lambd_max")  # on the work of the encoder


def name_of(model: str, rate: str | None, value: float | None) -> str:
    """What the upstream of a setting is called in a row: ``tiny, lambd 0.5``, or the model's name for a baseline."""
    return f"{model}, {RATE_NAMES[rate].format(exact(value))}" if rate else model


def points(results: pathlib.Path) -> dict[str, Point]:
    """One point of each upstream and fixed rate in a sweep's results, by its name."""
    rows: list[dict[str, Any]] = [json.loads(line) for line in results.read_text("utf-8").splitlines()]
    fields = Point.__dataclass_fields__
    found = [Point(**{key: value for key, value in row.items() if key in fields}) for row in rows]
    return {name_of(each.model, each.rate, each.value): each for each in found if each.rate != ADAPTIVE}


def contender(name: str, point: Point, waves: list[torch.Tensor]) -> Contender:
    from s3prl import hub  # as s3prl_set_up leaves it

    options = {key: value for key, value in point.rate_options.items() if key not in WITHOUT_EFFECT}
    upstream = getattr(hub, point.upstream)(ckpt=point.checkpoint, **options).eval()
    run = functools.partial(torch.no_grad()(upstream), waves)
    return Contender("upstream", name, run, sum(map(len, waves)) / SAMPLE_RATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("audio", type=pathlib.Path, help="folder")
    parser.add_argument("--utterances", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS / "evidence" / "results.jsonl")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "upstreams.csv")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cpu")
    utterances = find_utterances([args.audio])
    chosen = utterances[:: math.ceil(len(utterances) / args.utterances)]
    waves = [torch.from_numpy(load_audio(each.path)) for each in chosen]
    with s3prl_set_up():
        contenders = [contender(name, point, waves) for name, point in points(args.results).items()]
        write(compare(contenders, args.rounds, device, environment(device, PACKAGES)), args.out)


if __name__ == "__main__":
    main()
