"""Writes the rows of a benchmark to its csv, and names the machine."""

import csv
import os
import pathlib

import torch

from s3prl_ofa.device import device_name


def machine(device: torch.device) -> str:
    """The name of the GPU, or of the processor with its number of cores."""
    return device_name(device) if device.type == "cuda" else f"{device_name(device)}, {os.cpu_count()} cores"


def write(rows: list[dict[str, object]], path: pathlib.Path) -> None:
    """Appends rows to the csv and prints them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print("{benchmark:8} {contender:22} {median_s:>9} s  {ratio:>6} of {ratio_to}".format(**row))
