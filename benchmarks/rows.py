"""Writes the rows of a benchmark to its csv, and names the machine."""

import csv
import os
import pathlib
import platform

import torch


def machine(device: torch.device) -> str:
    """The name of the processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        info = pathlib.Path("/proc/cpuinfo").read_text()
        name = next(line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


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
