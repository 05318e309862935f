"""The targets of the benchmarks: each is a figure computed from rows."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from benchmarks.rows import Row

OURS = "ours, {} ms"


def is_ours(name: str) -> bool:
    return name.startswith("ours")


def is_exported(name: str) -> bool:
    """Whether this is our model in another runtime."""
    return ", exported, " in name


def latest(rows: Iterable[Row], benchmark: str, dtype: str, *wanted: str) -> dict[str, Row]:
    """By contender, the latest run with all ``wanted`` contenders, preferably of wall time and with most threads.

    Empty without such a run.
    """
    runs: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        if (row.benchmark, row.dtype) == (benchmark, dtype):
            runs.setdefault((row.clock == "wall", row.threads, row.run), {})[row.contender] = row
    complete = [key for key, run in runs.items() if set(wanted) <= set(run)]
    return runs[max(complete)] if complete else {}


def period_of(name: str) -> float:
    """The frame period in ms of one of ours, from its name."""
    return float(name.split()[1])


def cost_curve(rows: list[Row], dtype: str) -> dict[str, Row]:
    """Ours at several frame periods, timed in turn; empty where that was not measured."""
    curve = latest(rows, "cost curve", dtype, OURS.format(20)) or latest(rows, "single", dtype, OURS.format(90))
    return {name: row for name, row in curve.items() if is_ours(name) and not is_exported(name)}


def ratio(rows: list[Row], benchmark: str, dtype: str, one: str, other: str | None = None) -> float | None:
    """Time of contender ``other``, by default of the fastest peer, relative to that of ``one`` in the same run."""
    wanted = [one] if other is None else [one, other]
    run = latest([row for row in rows if other or has_peers(rows, row)], benchmark, dtype, *wanted)
    others = [row.median_s for name, row in run.items() if (name == other if other else not is_ours(name))]
    return min(others) / run[one].median_s if others else None


def has_peers(rows: list[Row], row: Row) -> bool:
    """Whether peers were measured beside ``row``."""
    key = (row.run, row.benchmark, row.dtype)
    return any((each.run, each.benchmark, each.dtype) == key and not is_ours(each.contender) for each in rows)


def across(rows: list[Row], one: tuple[str, str], other: tuple[str, str], name: str) -> float | None:
    """Time of ``name`` per second of audio, on (benchmark, dtype) ``one`` relative to ``other``, in one run."""
    found = {}
    for row in rows:
        if row.contender == name and (row.benchmark, row.dtype) in (one, other):
            run = found.setdefault((row.clock == "wall", row.threads, row.run), {})
            run[row.benchmark, row.dtype] = row.median_s / row.audio_s
    complete = [key for key, run in found.items() if len(run) == 2]
    return found[max(complete)][one] / found[max(complete)][other] if complete else None


def share(rows: list[Row]) -> float | None:
    """The share of the model's own rate that the command reaches."""
    run = max((row.run for row in rows if row.benchmark == "corpus"), default=None)
    rates = {row.contender == "model alone": row.audio_s / row.median_s for row in rows if row.run == run}
    return rates[False] / rates[True] if rates else None


def warm_step(rows: list[Row]) -> float | None:
    run = latest(rows, "downstream pr", "float32", "downstream model alone")
    return run["run_downstream, warm cache"].median_s / run["downstream model alone"].median_s if run else None


def int8_cost(rows: list[Row]) -> float | None:
    """Points of PER that int8 hidden states add for a task that was trained on float32."""
    runs: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.benchmark.startswith("pr, ") and row.contender == "trained in float32":
            runs.setdefault(row.run, {})[row.dtype] = 100 * float(row.note)
    complete = [run for run, found in runs.items() if len(found) == 2]
    return runs[max(complete)]["int8"] - runs[max(complete)]["float32"] if complete else None


def longest(rows: list[Row]) -> dict[str, Row]:
    """The hour, if it was measured, and the shortest audio of its run."""
    rows = [row for row in rows if row.benchmark == "long"]
    hours = [row for row in rows if row.audio_s >= 3600]
    if not hours:
        return {}
    hour = max(hours, key=lambda row: row.run)
    return {"hour": hour, "shortest": min((row for row in rows if row.run == hour.run), key=lambda row: row.audio_s)}


def memory_of_an_hour(rows: list[Row]) -> float | None:
    found = longest(rows)
    return found["hour"].peak_mib / 953.7 if found else None  # 10^9 bytes


def time_of_an_hour(rows: list[Row]) -> float | None:
    found = {name: row.median_s / row.audio_s for name, row in longest(rows).items()}
    return found["hour"] / found["shortest"] if found else None


class Target(NamedTuple):
    """A figure, computed from the rows of one machine, and the least (or most) that it should be."""

    what: str
    goal: float
    value: Callable[[list[Row]], float | None]
    at_most: bool = False
    where: str = "cpu"  # cpu, cuda, or a CPU with bfloat16 arithmetic (bf16), with AMX (amx) or without it (no amx)

    def applies(self, rows: list[Row]) -> bool:
        row = rows[0]
        cpu, amx = row.device == "cpu", "amx_bf16" in row.instructions
        return {
            "cpu": cpu,
            "cuda": row.device == "cuda",
            "bf16": cpu and "bf16" in row.instructions,
            "amx": cpu and amx,
            "no amx": cpu and not amx,
        }[self.where]

    def cell(self, rows: list[Row]) -> str:
        if not self.applies(rows):
            return "–"
        value = self.value(rows)
        if value is None:
            return "not measured"
        reached = value <= self.goal if self.at_most else value >= self.goal
        return f"{value:z.2f}, {'reached' if reached else 'not reached'}"


OURS_20, OURS_90 = OURS.format(20), OURS.format(90)
TARGETS = (
    Target("float32, 20 ms: best peer / ours", 1.12, lambda rows: ratio(rows, "single", "float32", OURS_20)),
    Target(
        "bfloat16, 20 ms: best peer / ours", 1.4, lambda rows: ratio(rows, "single", "bfloat16", OURS_20), where="amx"
    ),
    Target("float32: best peer / ours at 90 ms", 2.2, lambda rows: ratio(rows, "single", "float32", OURS_90)),
    Target(
        "bfloat16: best peer / ours at 90 ms",
        2.6,
        lambda rows: ratio(rows, "single", "bfloat16", OURS_90),
        where="bf16",
    ),
    Target(
        "int8: our float32 / our int8",
        1.5,
        lambda rows: across(rows, ("single", "float32"), ("single", "int8"), OURS_20),
        where="no amx",
    ),
    Target(
        "int8: our bfloat16 / our int8",
        1.2,
        lambda rows: across(rows, ("single", "bfloat16"), ("single", "int8"), OURS_20),
        where="amx",
    ),
    Target("int8: points of PER more than with float32, pr", 0.5, int8_cost, at_most=True),
    Target(
        "16 mixed lengths, float32: best padded peer / ours", 2.5, lambda rows: ratio(rows, "mixed", "float32", OURS_20)
    ),
    Target(
        "16 mixed lengths / equal lengths, float32",
        1.1,
        lambda rows: across(rows, ("mixed", "float32"), ("equal", "float32"), OURS_20),
        at_most=True,
    ),
    Target(
        "32 mixed lengths, bfloat16: transformers compiled / ours",
        3.0,
        lambda rows: ratio(rows, "mixed", "bfloat16", OURS_20, "transformers, compiled"),
        where="cuda",
    ),
    Target(
        "32 equal lengths, bfloat16: transformers compiled / ours",
        1.0,
        lambda rows: ratio(rows, "equal", "bfloat16", OURS_20, "transformers, compiled"),
        where="cuda",
    ),
    Target(
        "32 equal lengths, bfloat16: share of the matrix rate",
        0.4,
        lambda rows: (run := latest(rows, "equal", "bfloat16", OURS_20)) and run[OURS_20].matrix_share or None,
        where="cuda",
    ),
    Target(
        "32 mixed lengths, bfloat16: 20 ms / 90 ms",
        1.8,
        lambda rows: ratio(rows, "mixed", "bfloat16", OURS_90, OURS_20),
        where="cuda",
    ),
    Target("one hour in one file: peak memory in GB", 3.0, memory_of_an_hour, at_most=True),
    Target("one hour in one file: time per second / that of the shortest", 1.1, time_of_an_hour, at_most=True),
    Target("extract, 500 files: share of the model's own rate", 0.85, share),
    Target("run_downstream, warm cache: step / downstream model alone", 1.2, warm_step, at_most=True),
    Target(
        "pretraining, mean lambd 0.5: update / fairseq's",
        0.8,
        lambda rows: ratio(rows, "pretrain", "float32", "fairseq wav2vec2", "ours, mean lambd 0.5"),
        at_most=True,
    ),
    Target(
        "pretraining, lambd 1: update / fairseq's",
        0.45,
        lambda rows: ratio(rows, "pretrain", "float32", "fairseq wav2vec2", "ours, lambd 1"),
        at_most=True,
    ),
)
