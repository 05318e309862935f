"""Times the upstream of each setting of the evidence, on a machine with nothing else to do.

    python -m benchmarks.upstreams AUDIO --threads 1

The times in the rows of a sweep come from points that run side by side, some of them on another day. Here all settings
take turns at the same utterances, as S3PRL's upstreams; a learned rate is where the last seed's ended. Checkpoints are
where the rows say, from the project's folder.
"""

import argparse
import dataclasses
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


def name_of(each: Any) -> str:
    """What the upstream of a point or setting is called in a row: ``tiny, lambd 0.5``, for a learned rate
    ``tiny, adaptive 1 from 0.1, pr``, for a baseline the model's name."""
    if not each.rate:
        return each.model
    name = f"{each.model}, {RATE_NAMES[each.rate].format(exact(each.value))}"
    return f"{name} from {exact(each.lambd_start)}, {each.task}" if each.rate == ADAPTIVE else name


def points(results: pathlib.Path) -> dict[str, Point]:
    """A point that has the upstream and rate of each setting in a sweep's results, by its name."""
    found = {}
    for row in map(json.loads, results.read_text("utf-8").splitlines()):
        point = Point(**{key: value for key, value in row.items() if key in Point.__dataclass_fields__})
        name = name_of(point)
        if point.rate == ADAPTIVE:
            point = dataclasses.replace(point, rate="lambd", value=row["learnt_lambd"])
        found[name] = point
    return found


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
