"""Writes what SUPERB's tasks beside asr, pr and sid scored on small corpora of real speech into docs/how-to/superb.md.

    s3prl-ofa sweep downstream_configs/sweeps/superb_small.yaml
    python -m benchmarks.superb_small --sweep sweeps/superb_small

The rows of the sweep take the place of those of the same tasks and rates in results/superb_small.jsonl; without the
option the table is made of these again.
"""

import argparse
import json
import os
import pathlib
from typing import Any

from benchmarks.report import table, with_tables
from benchmarks.rows import RESULTS

ROWS = RESULTS / "superb_small.jsonl"
ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "how-to" / "superb.md"
LAMBDS = (0.0, 0.5, 1.0)
TASKS = {  # the corpus, its test set, and the metrics that are shown
    "ks": ("six keywords, pieces of orders and noise", "78 clips", ("acc",)),
    "ic": ("three keywords in a row, all of them right; chance is 0.13", "80 commands", ("acc",)),
    "sf": (
        "coffee orders, of which only the slots are transcribed",
        "22 orders",
        ("slot_type_f1", "slot_value_cer", "cer"),
    ),
    "sd": ("mixtures of two readers (`--limit 20`)", "20 mixtures", ("der",)),
    "er": ("no emotions are known: women and men, slow and fast; chance is 0.36", "72 clips", ("acc",)),
    "asv": ("pairs of utterances of readers that were not trained on (`--limit 8`)", "521 pairs", ("EER",)),
    "qbe": ("keywords in orders; the better of layers 3 and 5 on dev", "18 queries, 60 orders", ("mtwv",)),
}

Row = dict[str, Any]


def read(path: pathlib.Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def scores() -> str:
    """The table: a line per task and metric."""
    by_task: dict[str, dict[float, Row]] = {}
    for row in read(ROWS):
        by_task.setdefault(row["task"], {})[row["value"]] = row
    lines = []
    for task, (corpus, test, metrics) in TASKS.items():
        found = by_task[task]
        for metric in metrics:
            cells = [f"{found[lambd]['scores'][metric]:.2f}" for lambd in LAMBDS]
            lines.append([task, corpus, test, str(found[LAMBDS[0]]["steps"] or "none"), f"`{metric}`", *cells])
    return table(["task", "on", "test", "updates", "score", *(f"lambd {lambd:g}" for lambd in LAMBDS)], lines)


TABLES = {"superb": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", type=pathlib.Path, help="the folder of the sweep")
    args = parser.parse_args()
    new = read(args.sweep / "results.jsonl") if args.sweep else []
    for row in new:
        row["checkpoint"] = os.path.relpath(row["checkpoint"], ROOT)
    rows = {(row["task"], row["value"]): row for row in read(ROWS) + new}
    order = sorted(rows, key=lambda key: (list(TASKS).index(key[0]), key[1]))
    ROWS.write_text("".join(f"{json.dumps(rows[key])}\n" for key in order), "utf-8")
    PAGE.write_text(with_tables(PAGE.read_text("utf-8"), TABLES), "utf-8")


if __name__ == "__main__":
    main()
