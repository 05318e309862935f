"""The rows that all benchmarks write, and the timing of contenders that take turns."""

import csv
import dataclasses
import datetime
import functools
import importlib.metadata
import os
import pathlib
import platform
import random
import statistics
import time
from collections.abc import Callable

import torch
from tqdm import tqdm

from s3prl_ofa.device import cpuinfo, device_name, processor_name
from s3prl_ofa.model.products import int8_product, pack_int8

RESULTS = pathlib.Path(__file__).parent / "results"
CLOCKS = {"wall": time.perf_counter, "cpu": time.thread_time}
# The instruction sets that matrix products and convolutions can use, by their names in /proc/cpuinfo.
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8")
MATRIX = "matrix product"  # the contender whose speed is the most that the machine can do
MATRIX_SIZE = {"cpu": 2048, "cuda": 8192}


@dataclasses.dataclass(frozen=True)
class Row:
    """One contender of one benchmark; what does not apply to it is None.

    run: when the benchmark started; only rows of one run are compared.
    audio_s: seconds of audio that one round processes; 0 where that does not apply.
    median_s: median of the seconds of a round. rounds: how many, None where that was not kept.
    frames: hidden-state frames. gmac: 10^9 multiply-accumulates of the audio itself, without padding.
    gflops: 10^9 floating point operations per second, two per multiply-accumulate.
    matrix_share: ``gflops`` relative to that of a large matrix product of the same dtype in the same rounds.
    """

    run: str
    benchmark: str
    contender: str
    audio_s: float
    median_s: float
    rounds: int | None
    dtype: str
    device: str
    machine: str
    instructions: str
    threads: int
    clock: str
    versions: str
    frames: int | None = None
    gmac: float | None = None
    gflops: float | None = None
    matrix_share: float | None = None
    cpu_s: float | None = None
    peak_mib: int | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Contender:
    """A function to time, its name in a row, and how much it does in one round."""

    benchmark: str
    name: str
    run: Callable[[], object]
    audio_s: float
    dtype: str = "float32"
    frames: int | None = None
    macs: int | None = None


def machine(device: torch.device) -> str:
    """The name of the GPU, or of the processor with its number of cores."""
    return device_name(device) if device.type == "cuda" else f"{processor_name()}, {os.cpu_count()} cores"


def instructions(device: torch.device) -> str:
    """The instruction sets that fast kernels use, and the limit that the environment sets for oneDNN."""
    if device.type == "cuda":
        return "sm_{}{}".format(*torch.cuda.get_device_capability(device))
    found = [flag for flag in CPU_FLAGS if flag in cpuinfo("flags").split()]
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")
    return " ".join([*found, *([f"(oneDNN up to {limit})"] if limit else [])])


def environment(device: torch.device, packages: tuple[str, ...], clock: str = "wall") -> dict[str, object]:
    """The part of a row that all rows of a run share."""
    versions = [("python", platform.python_version())]
    for package in packages:
        try:
            versions.append((package, importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "run": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "device": device.type,
        "machine": machine(device),
        "instructions": instructions(device),
        "threads": torch.get_num_threads(),
        "clock": clock,
        "versions": ", ".join(map(" ".join, versions)),
    }


def matrix_product(dtype: str, device: torch.device) -> Contender:
    """A square matrix product, large enough to show what the machine can do in ``dtype``."""
    size = MATRIX_SIZE[device.type]
    if dtype == "int8" and device.type == "cpu":  # for which torch._int_mm is slow without AVX-512
        levels = torch.randint(256, (size, size), dtype=torch.uint8)
        weight, scales = pack_int8(torch.randn(size, size))
        run = functools.partial(int8_product, levels, 128, weight, scales, torch.float32)
    elif dtype == "int8":
        one = torch.randint(-128, 127, (size, size), dtype=torch.int8, device=device)
        run = functools.partial(torch._int_mm, one, one.t().contiguous().t())
    else:
        one = torch.randn(size, size, device=device).to(getattr(torch, dtype))
        run = functools.partial(torch.mm, one, one.clone())
    return Contender(MATRIX, f"{size} x {size}", run, 0.0, dtype, macs=size**3)


def measure(runs: list[Callable[[], object]], rounds: int, device: torch.device, clock: str) -> list[list[float]]:
    """Seconds of each function in each round, after a warm-up round."""
    seconds: list[list[float]] = [[] for _ in runs]
    order, now = random.Random(0), CLOCKS[clock]

    def synchronize() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    for turn in tqdm(range(rounds + 1), unit="round", leave=False, disable=None):
        # A new order in every round, not only another start, so that no contender always follows the same one.
        for index in order.sample(range(len(runs)), len(runs)):
            synchronize()
            begin = now()
            runs[index]()
            synchronize()
            if turn:
                seconds[index].append(now() - begin)
    return seconds


def compare(contenders: list[Contender], rounds: int, device: torch.device, shared: dict[str, object]) -> list[Row]:
    """Times contenders in turn, beside a matrix product of each of their dtypes."""
    dtypes = {contender.dtype: None for contender in contenders if contender.macs}
    contenders = [*(matrix_product(dtype, device) for dtype in dtypes), *contenders]
    seconds = measure([contender.run for contender in contenders], rounds, device, shared["clock"])
    rows = []
    for contender, values in zip(contenders, seconds, strict=True):
        median = statistics.median(values)
        gflops = 2e-9 * contender.macs / median if contender.macs else None
        rows.append(
            Row(
                benchmark=contender.benchmark,
                contender=contender.name,
                audio_s=round(contender.audio_s, 2),
                median_s=rounded(median),
                rounds=rounds,
                dtype=contender.dtype,
                frames=contender.frames,
                gmac=contender.macs and rounded(contender.macs / 1e9),
                gflops=gflops and rounded(gflops),
                **shared,
            )
        )
    most = {row.dtype: row.gflops for row in rows if row.benchmark == MATRIX}
    return [
        dataclasses.replace(row, matrix_share=row.gflops and round(row.gflops / most[row.dtype], 3)) for row in rows
    ]


def rounded(value: float) -> float:
    """To four significant digits."""
    return float(f"{value:.4g}")


def peak_mib(device: torch.device) -> int:
    """Peak memory in MiB: that of torch's allocator on a GPU, of this process on a CPU (Linux only)."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20)
    # Not from getrusage, whose value starts with that of the parent process.
    status = pathlib.Path("/proc/self/status").read_text()
    return round(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def write(rows: list[Row], path: pathlib.Path) -> None:
    """Appends rows to a csv file and prints them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = not path.exists()
    names = [field.name for field in dataclasses.fields(Row)]
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerows(map(dataclasses.asdict, rows))
    for row in rows:
        share = "" if row.matrix_share is None else f" {100 * row.matrix_share:5.1f}% of the matrix rate"
        print(f"{row.benchmark:14} {row.contender:24} {row.dtype:8} {row.median_s:>9} s{share}", flush=True)


def read(path: pathlib.Path) -> list[Row]:
    """The rows of a csv file."""
    kinds = {field.name: field.type for field in dataclasses.fields(Row)}

    def value(name: str, text: str) -> object:
        if kinds[name] is str:
            return text
        return None if text == "" else int(text) if kinds[name] in (int, int | None) else float(text)

    with path.open(newline="", encoding="utf-8") as file:
        return [Row(**{name: value(name, text) for name, text in row.items()}) for row in csv.DictReader(file)]
