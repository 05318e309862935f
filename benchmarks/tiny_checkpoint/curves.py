"""Writes the curves of a pretraining to a csv: every scalar of its validations, one row per validation.

    python benchmarks/tiny_checkpoint/curves.py OUT [OUT ...] --csv pretraining.csv

OUT is an output folder of `s3prl-ofa pretrain`, whose TensorBoard files are read with the package tensorboard.
"""

import argparse
import csv
import pathlib

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from s3prl_ofa.io.files import atomic_path

LEFT_OUT = ("wall", "wps", "ups", "wpb", "bsz", "ntokens", "nsentences", "best_loss")
DIGITS = 5


def rows_of(out: pathlib.Path) -> list[dict[str, object]]:
    """One row per validation. A resumed run has several files; the last value of an update counts."""
    values: dict[int, dict[str, object]] = {}
    for path in sorted((out / "tensorboard" / "valid").glob("events.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                values.setdefault(event.step, {})[name] = round(event.value, DIGITS)
    return [{"run": out.name, "update": step, **values[step]} for step in sorted(values)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path, nargs="+")
    parser.add_argument("--csv", type=pathlib.Path, required=True)
    args = parser.parse_args()
    rows = [row for out in args.out for row in rows_of(out)]
    scalars = {name for row in rows for name in row} - {"run", "update", *LEFT_OUT}
    names = ["run", "update", *sorted(scalars)]
    with atomic_path(args.csv) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
