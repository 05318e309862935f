"""Made-up rows of a sweep for the tests of its report: asr, pr and sid at rates, pooling, mfcc and another upstream."""

import json
import pathlib
import random

TASKS = {"asr": ("wer", False, 1, 22.0), "pr": ("per", False, 100, 0.13), "sid": ("acc", True, 100, 0.62)}
PERIODS = {0.0: 20.1, 0.25: 24.8, 0.5: 32.3, 0.75: 46.2, 1.0: 80.8}


def row(task: str, rate: str | None, value: float | None, seed: int, model: str = "tiny", **changes) -> dict:
    """One finished row; changes: keys to give another value."""
    metric, higher, unit, best = TASKS[task]
    period = {"lambd": PERIODS.get(value, 60.0), "pool": 20.1 * (value or 0), None: 10.0}[rate]
    worse = max(0.0, (period - 24) / 60) * (1.7 if rate == "pool" else 1) + (0.45 if rate is None else 0)
    noise = random.Random(f"{task}{rate}{value}{seed}").gauss(0, 0.012)
    score = best * (1 - 0.45 * worse + noise) if higher else best * (1 + worse + noise)
    encoder = 1.0 if rate == "pool" else 20.1 / max(period, 20.1)
    found = {
        "point": f"{task}_{model}_{rate}{value}_seed{seed}",
        "state": "finished",
        "task": task,
        "model": model,
        "upstream": "ofa_wav2vec2" if rate else model,
        "checkpoint": "/somewhere/tiny.safetensors" if rate else None,
        "rate": rate,
        "value": value,
        "output_frames": "native" if rate else None,
        "seed": seed,
        "asked_repeat": (1 if task == "sid" else "auto") if rate else None,
        "repeat": 1 if rate else None,
        "learning_rate": 0.001,
        "steps": 500,
        "metric": metric,
        "higher_is_better": higher,
        "unit": unit,
        "checkpoint_sha256": "0" * 64,
        "config_sha256": "1" * 64,
        "score": score,
        "dev_score": score,
        "frame_period_ms": period,
        "frame_count": round(1e6 / period),
        "utterances": 100,
        "audio_seconds": 1000.0,
        "macs_per_second": (0.9e9 + 1.6e9 * encoder) if rate else 2e6,
        "upstream_seconds_per_second": 0.004 + 0.006 * encoder + noise / 100 if rate else 0.001,
        "downstream_seconds_per_second": 0.002 * 20 / max(period, 1),
        "peak_memory_mb": 700.0,
        "device": "AMD EPYC",
        "scores": {metric: score, "loss": 1.0},
        "duration_s": 300.0,
        "attempts": 1,
        "finished": "2026-01-01T00:00:00+00:00",
        "versions": {"torch": "2.13.0"},
        "commit": None,
    }
    return found | changes


def grid_rows() -> list[dict]:
    rates = [("lambd", value) for value in PERIODS] + [("pool", value) for value in (2, 3, 4)]
    rows = [row(task, *rate, seed) for task in TASKS for rate in rates for seed in (1, 2)]
    return rows + [row(task, None, None, seed, "mfcc") for task in TASKS for seed in (1, 2)]


def write_sweep(folder: pathlib.Path, rows: list[dict], missing: tuple[str, ...] = ()) -> pathlib.Path:
    """A sweep's folder with these rows, and points of its grid that have none."""
    for name in (*(row["point"] for row in rows), *missing):
        (folder / "points" / name).mkdir(parents=True, exist_ok=True)
        (folder / "points" / name / "point.json").write_text("{}")
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
