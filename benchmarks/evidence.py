"""Writes the results of the bundled checkpoint into README.md, MODEL_CARD.md and docs/results.md.

    python -m benchmarks.evidence && python docs/drawings.py

They come from the sweep in results/evidence (its results.jsonl and, for intervals, points/*/utterances.json), its
second run, the times and memory of the upstreams, the probes and the training. Tables are between marks, as in
report.py; a test checks the pages.
"""

import csv
import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks.report import table, title, with_tables
from benchmarks.rows import RESULTS, Row, read
from benchmarks.run_again import run_again
from benchmarks.upstreams import name_of
from s3prl_ofa.io.files import read_json
from s3prl_ofa.superb.upstream.rate_options import ADAPTIVE
from s3prl_ofa.sweep.report import tables
from s3prl_ofa.sweep.report.aggregation import Summary, summarize
from s3prl_ofa.sweep.report.bootstrap import resampled_scores
from s3prl_ofa.sweep.report.front import COSTS, Choice, choice, front, on_the_front
from s3prl_ofa.sweep.report.settings import Kind, base_of
from s3prl_ofa.sweep.results import POINTS, PointFolder

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "MODEL_CARD.md", ROOT / "docs" / "results.md"]
EVIDENCE = RESULTS / "evidence"
UPSTREAMS = RESULTS / "upstreams.csv"  # made by benchmarks.upstreams
MEMORY = RESULTS / "memory.csv"  # made by benchmarks.memory
CURVES = ROOT / "s3prl_ofa" / "demo" / "tiny.csv"
TOLERANCE = 0.05
HELD_OUT = {"1088", "3947", "7367", "8629"}  # speakers of LibriSpeech that pretraining did not hear
TASKS = {"pr": "Phonemes", "sid": "Speakers", "asr": "Characters"}
# The column in which the compressed setting that is compared with one of each kind has to be nearest
ALIKE = dict.fromkeys((Kind.POOLED, Kind.SPECIALIST, Kind.LEARNED), "frame_period_ms")
ALIKE |= {Kind.EQUAL: "value", Kind.EXIT: "gmacs"}
PROBED = ("phone_accuracy", "speaker_accuracy")
VALIDATED = {  # text and digits of columns of the curves
    "dev_accuracy": ("phone accuracy", 3),
    "masked_accuracy": ("masked-prediction accuracy, chance 0.020", 3),  # one of 51
    "infonce_bits": ("InfoNCE (bits), chance 5.67", 2),
    "period_ms": ("frame period (ms)", 1),
}


def evidence() -> Summary:
    return summary_of(EVIDENCE)


@functools.cache
def summary_of(folder: pathlib.Path) -> Summary:
    """The report, with upstreams timed on a quiet machine instead of in points that ran side by side."""
    found = summarize(folder, TOLERANCE)
    times = {row.contender: 1000 * row.median_s / row.audio_s for row in last_run(UPSTREAMS)}
    upstream_ms = [times.get(name_of(each), math.nan) for each in found.settings.itertuples()]
    settings = found.settings.assign(upstream_ms=upstream_ms)
    settings["total_ms"] = settings["upstream_ms"] + settings["downstream_ms"]
    scores = resampled_scores(folder, settings)
    fronts = {cost: on_the_front(settings, scores, cost) for cost in COSTS}
    return dataclasses.replace(found, settings=settings, fronts=fronts)


def last_run(path: pathlib.Path) -> list[Row]:
    """The rows of a benchmark's last run."""
    rows = read(path)
    return [row for row in rows if row.run == max(each.run for each in rows)]


def what_was_run() -> str:
    """How many points, seeds and updates, and on what."""
    tasks = []
    for task, settings in evidence().settings.groupby("task", sort=False):
        counts = settings["seeds"].map(len).tolist()
        seeds = " to ".join(dict.fromkeys(map(str, (min(counts), max(counts)))))
        tasks.append(f"{task} {seeds} seed{'s' * (max(counts) > 1)} and {settings['steps'].max():.0f} updates")
    return (
        f"{len(evidence().finished)} runs: {'; '.join(tasks)}. Scores are means and standard deviations over seeds. "
        f"{tables.about_intervals(evidence())}GMACs are the upstream's, per second of audio; x2: each frame was "
        f"repeated for CTC. Computed on {tables.devices(evidence())}."
    )


def headline() -> str:
    """A line per task: the score at 20 ms, and score and speed at each other rate."""
    lines = []
    for task, settings in evidence().settings.groupby("task", sort=False):
        curve = settings[settings["kind"] == Kind.VARIABLE].sort_values("frame_period_ms")
        if (base := base_of(settings)) is None or len(curve) < 2:
            continue
        parts = [f"{base.metric_name.removesuffix(' (%)')} {base.score:.1f}% at 20 ms per frame"]
        for one in curve[curve.index != base.Index].itertuples():
            faster = f"{base.total_ms / one.total_ms:.1f}x" + (" faster" if len(parts) == 1 else "")
            faster += ", frames repeated" if max(one.repeats, default=1) > 1 else ""
            period = f"{one.frame_period_ms:.1f}".removesuffix(".0")
            parts.append(f"{one.score:.1f}% at {period} ms ({faster})")
        lines.append(f"* **{TASKS[task]}**: {', '.join(parts)}{why_not_words(base)}")
    return "\n".join(lines)


def why_not_words(setting: Any) -> str:
    """For a task that is scored by characters, how many words are wrong."""
    rows = [row["scores"] for row in evidence().finished if row["point"] in setting.points]
    rates = [scores["wer"] for scores in rows if "wer" in scores and setting.metric != "wer"]
    return f"; words need more training (WER {sum(rates) / len(rates):.0f}% at 20 ms)" if rates else ""


def frames_once(settings: Any, kind: Kind) -> Any:
    """The settings of a kind in which CTC sees each frame once; if it sees them twice, that decides the score rather
    than the rate."""
    once = settings["repeats"].map(lambda repeats: max(repeats, default=1) == 1)
    return settings[once & (settings["kind"] == kind)].sort_values("frame_period_ms", kind="stable")


def overview() -> str:
    return table(*tables.overview(evidence()))


def all_settings() -> str:
    """Without memory: what a point needs depends on whether another one has filled the cache."""
    columns = {name: cell for name, cell in tables.SETTING_COLUMNS.items() if not name.startswith("memory")}
    return table(*tables.table(columns, evidence().settings.itertuples()))


def best_of_one_checkpoint() -> str:
    """The best setting of the once-for-all checkpoint within each cost, and which dev would have chosen."""
    settings = evidence().settings
    ours = settings[~settings["kind"].isin((Kind.SPECIALIST, Kind.BASELINE))]
    rows = {row["point"]: row for row in evidence().finished}
    dev = [sum(rows[point]["dev_score"] for point in points) / len(points) for points in ours["points"]]
    signs = ours["higher_is_better"].map({True: 1, False: -1})
    on_dev = ours.assign(merit=signs * dev)
    names = [
        f"{task} {', '.join(front(of_task, 'gmacs')['name'])}" for task, of_task in on_dev.groupby("task", sort=False)
    ]
    chosen = choices(on_the_front(ours, resampled_scores(EVIDENCE, settings), "gmacs"))
    return f"{chosen}\n\nSelecting on dev would give: {'; '.join(names)}."


def best_of_all(cost: str) -> str:
    """The same of all models, for the tasks that have others."""
    kinds = evidence().settings.groupby("task")["kind"].agg(set)
    return choices([each for each in evidence().fronts[cost] if Kind.SPECIALIST in kinds[each.setting.task]])


def choices(found: list[Choice]) -> str:
    return table(*tables.table(tables.CHOICE_COLUMNS, found))


def compared(kind: Kind) -> list[Choice]:
    """The compressed setting that is most similar to each setting of a kind, or has the same number of frames, with
    that one as its rival."""
    settings = evidence().settings
    scores, found = resampled_scores(EVIDENCE, settings), []
    for _, of_task in settings.groupby("task", sort=False):
        ours = frames_once(of_task, Kind.VARIABLE)
        for rival in frames_once(of_task, kind).itertuples():
            distance = (ours[ALIKE[kind]] - getattr(rival, ALIKE[kind])).abs()
            if not len(ours) or kind == Kind.EQUAL and distance.min() > 0:
                continue
            nearest = next(ours.loc[[distance.idxmin()]].itertuples())
            found.append(choice(nearest, rival, of_task, scores, ""))
    return found


def beside(kind: Kind) -> str | None:
    """The table of ``compared``."""
    lines = []
    for found in compared(kind):
        both = [cell for setting in (found.rival, found.setting) for cell in cells(setting)]
        lines.append([found.setting.task, *both, better(found), tables.p_text(found)])
    head = ["task", "alternative", "ms", "GMACs / s", "score", "compressed", "ms", "GMACs / s", "score"]
    return table([*head, "compressed better by", "p"], lines) if lines else None


def beside_20_ms() -> str:
    """Each compressed setting in which CTC sees frames once, compared with no compression."""
    settings = evidence().settings
    scores, lines = resampled_scores(EVIDENCE, settings), []
    for task, of_task in settings.groupby("task", sort=False):
        if (base := base_of(of_task)) is None:
            continue
        curve = frames_once(of_task, Kind.VARIABLE)
        for one in curve[curve.index != base.Index].itertuples():
            found = choice(one, base, of_task, scores, "")
            lines.append([task, *cells(one), f"{found.faster:.2f}x", better(found), tables.p_text(found)])
    return table(["task", "rate", "ms", "GMACs / s", "score", "faster", "better than 20 ms by", "p"], lines)


def better(found: Choice) -> str:
    """By how much, with its interval."""
    ends = "" if found.interval is None else f" [{found.interval.low:.2f}, {found.interval.high:.2f}]"
    return f"{round(found.gain, 2) + 0.0:+.2f}{ends}"


def pairs_of_speakers() -> str:
    """Which pairs of settings of sid differ, of all of them."""
    of_task = evidence().settings[evidence().settings["task"] == "sid"].sort_values("merit", ascending=False)
    scores = resampled_scores(EVIDENCE, evidence().settings)
    found = [choice(*pair, of_task, scores, "") for pair in itertools.combinations(of_task.itertuples(), 2)]
    unlike = [each for each in found if each.interval is not None and each.interval.p < 0.05]
    texts = [
        f"{each.setting.label} and {each.rival.label} (by {each.gain:.1f}, p {each.interval.p:.3f})" for each in unlike
    ]
    return (
        f"Of all {len(found)} pairs of settings {len(unlike)} differ with p < 0.05, not corrected: {'; '.join(texts)}."
    )


def where_rates_settled() -> str | None:
    """The learned rate of each start and seed, and how far the frame periods of a task lie apart."""
    rows = [row for row in evidence().finished if row["rate"] == ADAPTIVE]
    lines, sentences = [], []
    for row in sorted(rows, key=lambda row: (row["task"], row["value"], row["lambd_start"], row["seed"])):
        numbers = [f"{row[key]:.{digits}f}" for key, digits in (("learnt_lambd", 2), ("frame_period_ms", 1))]
        score = f"{row['metric'].upper()} {row['unit'] * row['score']:.1f}%"
        lines.append([row["task"], *(f"{row[key]:g}" for key in ("value", "lambd_start", "seed")), *numbers, score])
    for task in dict.fromkeys(line[0] for line in lines):
        periods = [row["frame_period_ms"] for row in rows if row["task"] == task]
        apart = f"{max(periods) / min(periods) - 1:.0%}"
        sentences.append(f"The frame periods of {task} are {min(periods):.1f} to {max(periods):.1f} ms, {apart} apart.")
    head = ["task", "rate weight", "start (lambd)", "seed", "settled at (lambd)", "frame period (ms)", "score"]
    return "\n\n".join([table(head, lines), *sentences]) if lines else None


def where_it_pays() -> str:
    """The comparisons for phonemes, and what characters lose, in words."""

    def of_phonemes(kind: Kind) -> list[Choice]:
        return [found for found in compared(kind) if found.setting.task == "pr"]

    def points(kind: Kind, sign: int) -> str:
        """From the smallest to the largest gain, which all have this sign; else the words are wrong."""
        gains = sorted(sign * found.gain for found in of_phonemes(kind))
        assert gains[0] > 0, kind
        ends = dict.fromkeys(f"{gain:.0f}" for gain in (gains[0], gains[-1]))
        return " to ".join(ends)

    curves = dict(list(evidence().settings[evidence().settings["kind"] == Kind.VARIABLE].groupby("task")))
    fastest = max(base_of(curve).total_ms / curve["total_ms"].min() for curve in curves.values())
    characters = sorted(curves["asr"]["merit"].max() - curves["asr"]["merit"])
    memory = [row.peak_mib for row in last_run(MEMORY)]
    trained_for = " and ".join(f"{found.rival.frame_period_ms:.0f}" for found in of_phonemes(Kind.SPECIALIST))
    return (
        f"**Compression saves** time (up to {fastest:.1f} times faster), memory (a batch needs as little as "
        f"{min(memory) / max(memory):.0%} of that at 20 ms) and storage, and one checkpoint serves every rate. For "
        f"phonemes it is {points(Kind.EXIT, 1)} points of the phone error rate (PER) better than the first layers "
        "alone at equal cost, though the model was not trained for early exit. **It costs** accuracy for characters: "
        f"{characters[1]:.0f} to {characters[-1]:.0f} points of the character error rate. **For phonemes two "
        "alternatives are better**: if one rate is enough, a model trained with average pooling for that rate alone "
        f"({points(Kind.SPECIALIST, -1)} points at {trained_for} ms, at the same cost); if you can afford the whole "
        f"encoder, averaging its outputs ({points(Kind.POOLED, -1)} points at the same frame period)."
    )


def memory() -> str:
    """What a batch takes at each lambd, in words."""
    rows = last_run(MEMORY)
    parts = [f"{row.peak_mib} MiB at {row.contender}" for row in rows]
    return (
        f"Beyond the loaded model, a batch of {rows[0].audio_s / 60:.0f} minutes of speech with all its hidden states "
        f"takes {', '.join(parts)} (`python -m benchmarks.memory CHECKPOINT AUDIO`)."
    )


def cells(setting: Any) -> list[str]:
    score = f"{setting.metric_name} {tables.plus_minus(setting, 1)}{tables.interval_text(setting)}"
    return [setting.label, f"{setting.frame_period_ms:.1f}", f"{setting.gmacs:.3f}", score]


def s3prl_scores() -> str:
    """Scores of the once-for-all model, for the card."""
    settings = evidence().settings
    lines = [
        [setting.task, str(len(setting.seeds)), *cells(setting)] + [tables.repeated(setting, "x{}")]
        for setting in settings[settings["kind"] == Kind.VARIABLE].itertuples()
    ]
    return table(["task", "seeds", "rate", "frame period (ms)", "GMACs / s", "score", "frames repeated"], lines)


def held_out_speakers() -> str:
    """The accuracy of sid on speakers whose audio was not used in pretraining."""
    settings = evidence().settings
    accuracies = []
    for setting in settings[(settings["task"] == "sid") & (settings["kind"] == Kind.VARIABLE)].itertuples():
        of_points = [read_json(PointFolder(EVIDENCE / POINTS / point).utterances) for point in setting.points]
        unheard = [index for index, name in enumerate(of_points[0]["utterances"]) if name.split("-")[2] in HELD_OUT]
        correct = [found["sums"][index] for found in of_points for index in unheard]
        accuracies.append(f"{100 * sum(correct) / len(correct):.1f}% at {setting.label}")
    count = len(of_points[0]["utterances"])
    return (
        f"Speaker identification has all 28 speakers: {count - len(unheard)} of its {count} test utterances were heard "
        f"in pretraining, without speaker labels. On the {len(unheard)} others, accuracy is {', '.join(accuracies)}."
    )


def probes() -> str:
    """The best layer for each kind of features and rate."""
    best: dict[tuple[str, float], dict[str, Any]] = {}
    for row in probed("probes"):
        found = best.setdefault((row["features"], row["lambd"]), dict(row))
        found |= {key: max(found[key], row[key]) for key in PROBED}
    lines = [
        [name, f"{lambd:g}", f"{row['period_ms']:.0f}", *(f"{row[key]:.3f}" for key in PROBED)]
        for (name, lambd), row in best.items()
    ]
    return table(["features", "lambd", "frame period (ms)", "phone", "speaker"], lines)


def boundaries() -> str:
    """The ends of frames at lambd 1, and the same number of equidistant boundaries."""
    columns = ("precision", "recall", "f1", "r_value")
    lines = [
        [row["features"], row["boundaries"], f"{row['tolerance_ms']:g} ms", *(f"{row[key]:.3f}" for key in columns)]
        for row in probed("boundaries")
    ]
    return table(["model", "boundaries", "within", "precision", "recall", "F1", "R-value"], lines)


def probed(part: str) -> list[dict[str, Any]]:
    return json.loads((RESULTS / "tiny_probes.json").read_text("utf-8"))[part]


def validation() -> str:
    """The last row of the training's curves."""
    with CURVES.open(newline="") as file:
        last = list(csv.DictReader(file))[-1]
    lines = [
        [text, *(f"{float(last[f'{name}_{lambd}']):.{digits}f}" for lambd in ("0", "0.5", "1"))]
        for name, (text, digits) in VALIDATED.items()
    ]
    return table(["", "lambd 0", "lambd 0.5", "lambd 1"], lines)


TABLES: dict[str, Callable[[], str | None]] = {
    "what was run": what_was_run,
    "run again": lambda: run_again(evidence().finished),
    "headline": headline,
    "where it pays": where_it_pays,
    "overview": overview,
    "one checkpoint": best_of_one_checkpoint,
    "all models": lambda: best_of_all("gmacs"),
    "by time": lambda: best_of_all("total_ms"),
    "pairs of speakers": pairs_of_speakers,
    "timed on": lambda: title(last_run(UPSTREAMS)),
    "memory": memory,
    "beside 20 ms": beside_20_ms,
    "equal lengths": lambda: beside(Kind.EQUAL),
    "specialists": lambda: beside(Kind.SPECIALIST),
    "early exit": lambda: beside(Kind.EXIT),
    "pooling": lambda: beside(Kind.POOLED),
    "learned rates": lambda: beside(Kind.LEARNED),
    "where rates settled": where_rates_settled,
    "all settings": all_settings,
    "scores": s3prl_scores,
    "held out speakers": held_out_speakers,
    "probes": probes,
    "boundaries": boundaries,
    "validation": validation,
}


def main() -> None:
    for page in PAGES:
        page.write_text(with_tables(page.read_text("utf-8"), TABLES), "utf-8")


if __name__ == "__main__":
    main()
