#!/usr/bin/env python3
"""Arranges small corpora of real speech like the corpora of SUPERB's tasks, so that every task can be run on them.

usage: superb_corpora.py MINI_COMMANDS MINI_LIBRISPEECH OUT [--limit N]

| below OUT | from | for |
|---|---|---|
| speech_commands | the six keywords, as six of Speech Commands' ten; other words are pieces of orders | ks |
| fluent_speech_commands_dataset | three keywords in a row, in the place of action, object and location | ic |
| SNIPS | coffee orders; only size, drink and roast are known, so the transcript holds these words alone | sf |
| VoxCeleb1 | utterances of read speech; the speakers of test and dev are verified, in pairs at random | asv |
| LibriMix | mixtures of two utterances of read speech, speakers as in its split by text | sd |
| IEMOCAP_full_release | read speech, other readers in each session; women and men, slow and fast, as emotions | er |
| quesst14Database | keywords as queries, and orders at 8 kHz into half of which one is put, by another clip | qbe |

--limit N keeps N clips of each kind. Scores on them compare rates with each other, and nothing else.
"""

import argparse
import csv
import itertools
import pathlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import soundfile
import soxr

RATE = 16_000  # Hz
KEYWORDS = ("yes", "no", "up", "down", "left", "right")
EMOTIONS = {("F", False): "neu", ("F", True): "exc", ("M", False): "ang", ("M", True): "sad"}  # gender, whether fast
READINGS = 12  # of every speaker
COMMANDS = {"train": 160, "dev": 24, "test": 80}
DOCUMENTS, QUERIES = 60, 3  # queries of each keyword
UTTERANCES = 20  # of every speaker
PAIRS = 40  # of the same speaker and of two, for every speaker
MIXTURES = {"train": 150, "dev": 20, "test": 40}
NOISE = 1e-3  # RMS of the background noise

Row = dict[str, str]
Limit = Callable[[Iterable[Row]], list[Row]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("commands", "librispeech", "out"):
        parser.add_argument(name, type=pathlib.Path)
    parser.add_argument("--limit", type=int)
    args = parser.parse_args()

    def limit(rows: Iterable[Row]) -> list[Row]:
        return list(rows)[: args.limit]

    keywords = read_table(args.commands / "keywords.tsv")
    orders = read_table(args.commands / "intents.tsv")
    speech_commands(args.commands, keywords, orders, args.out / "speech_commands", limit)
    fluent(args.commands, keywords, args.out / "fluent_speech_commands_dataset", limit)
    snips(args.commands, orders, args.out / "SNIPS", limit)
    quesst(args.commands, keywords, orders, args.out / "quesst14Database", limit)
    read_speech = read_table(args.librispeech / "utterances.tsv")
    iemocap(args.librispeech, read_speech, args.out / "IEMOCAP_full_release", limit)
    voxceleb1(args.librispeech, read_speech, args.out / "VoxCeleb1", limit)
    librimix(args.librispeech, read_speech, args.out / "LibriMix", limit)


def read_table(path: pathlib.Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def read(path: pathlib.Path) -> np.ndarray:
    return soundfile.read(path, dtype="float32")[0]


def write(path: pathlib.Path, wave: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, RATE, subtype="PCM_16")


def noise(seconds: float, seed: int) -> np.ndarray:
    return NOISE * np.random.default_rng(seed).standard_normal(round(seconds * RATE)).astype(np.float32)


def of_split(rows: Iterable[Row], *splits: str) -> Iterator[Row]:
    return (row for row in rows if row["split"] in splits)


def speech_commands(
    root: pathlib.Path, keywords: list[Row], orders: list[Row], out: pathlib.Path, limit: Limit
) -> None:
    """S3PRL chooses what validates by a hash of each file's name, so train and dev are in one folder."""
    train, test = out / "speech_commands_v0.01", out / "speech_commands_test_set_v0.01"
    words = dict(zip(sorted({row["keyword"] for row in keywords}), KEYWORDS, strict=True))
    for folder, splits, other in ((train, ("train", "dev"), "bed"), (test, ("test",), "_unknown_")):
        for keyword, word in words.items():
            for row in limit(row for row in of_split(keywords, *splits) if row["keyword"] == keyword):
                path = root / row["file"]
                write(folder / word / f"{path.stem}_nohash_0.wav", read(path))
        for row in limit(of_split(orders, *splits)):
            path = root / row["file"]
            wave = read(path)
            middle = (len(wave) - RATE) // 2
            write(folder / other / f"{path.stem}_nohash_0.wav", wave[middle : middle + RATE])
    write(train / "_background_noise_" / "white_noise.wav", noise(30, 0))
    for seed in range(1, 1 + len(limit([{}] * 20))):
        write(test / "_silence_" / f"{seed}.wav", noise(1, seed))


def fluent(root: pathlib.Path, keywords: list[Row], out: pathlib.Path, limit: Limit) -> None:
    """Three keywords in a row, one of two for each slot; every combination occurs equally often in each split.

    The coffee orders are no substitute: of 88 to train on, a model that learns them by heart gets no other one right.
    """
    (out / "data").mkdir(parents=True, exist_ok=True)
    words = sorted({row["keyword"] for row in keywords})
    combinations = list(itertools.product(words[:2], words[2:4], words[4:]))
    random = np.random.default_rng(2)
    for split, name in (("train", "train"), ("dev", "valid"), ("test", "test")):
        clips = {word: [row for row in of_split(keywords, split) if row["keyword"] == word] for word in words}
        with (out / "data" / f"{name}_data.csv").open("w", encoding="utf-8", newline="") as file:
            table = csv.writer(file)
            table.writerow(("", "path", "speakerId", "transcription", "action", "object", "location"))
            for number in range(len(limit([{}] * COMMANDS[split]))):
                spoken = combinations[number % len(combinations)]
                waves = [read(root / clips[word][random.integers(len(clips[word]))]["file"]) for word in spoken]
                path = pathlib.PurePath("wavs", "speakers", "unknown", f"{name}{number:03}.wav")
                write(out / path, np.concatenate([loudest(wave, 1.0) for wave in waves]))
                table.writerow((number, path.as_posix(), "unknown", " ".join(spoken), *spoken))


def loudest(wave: np.ndarray, seconds: float) -> np.ndarray:
    """The stretch of a wave with the most energy, or all of a shorter one."""
    length = round(seconds * RATE)
    energy = np.concatenate([[0.0], np.cumsum(wave.astype(np.float64) ** 2)])
    start = int(np.argmax(energy[length:] - energy[:-length])) if len(wave) > length else 0
    return wave[start : start + length]


def snips(root: pathlib.Path, orders: list[Row], out: pathlib.Path, limit: Limit) -> None:
    slots = ("size", "drink", "roast")
    lines = []
    for split, name in (("train", "train"), ("dev", "valid"), ("test", "test")):
        for number, row in enumerate(limit(of_split(orders, split))):
            words = [(word.upper(), slot) for slot in slots for word in row[slot].split()]
            utterance = f"speaker-snips-{name}-{number}"
            write(out / name / f"{utterance}.wav", read(root / row["file"]))
            text, labels = (" ".join(column) for column in zip(*words, strict=True))
            lines.append(f"{utterance} BOS {text} EOS\tO {labels} order\n")
    (out / "all.iob.snips.txt").write_text("".join(lines), "utf-8")
    (out / "slots.txt").write_text("\n".join(("O", *slots)), "utf-8")


def iemocap(root: pathlib.Path, rows: list[Row], out: pathlib.Path, limit: Limit) -> None:
    """A session is a fifth of the women and of the men, so no speaker is both trained and tested on.

    An utterance is the loudest 3 s of 6 s and more. It is read fast if more letters are read in a second of it than in
    one of the median utterance.
    """
    long = [row for row in rows if int(row["samples"]) >= 6 * RATE]
    pace = {row["utterance"]: len(row["transcript"]) / int(row["samples"]) for row in long}
    median = float(np.median(list(pace.values())))
    speakers = sorted({(row["gender"], row["speaker"]) for row in long})
    for number, (gender, speaker) in enumerate(speakers):
        session = out / f"Session{1 + number % 5}"
        dialog = f"Ses{1 + number % 5:02}_{speaker}"
        lines = []
        for row in limit([row for row in long if row["speaker"] == speaker][:READINGS]):
            name = f"{dialog}_{row['utterance']}"
            write(session / "sentences" / "wav" / dialog / f"{name}.wav", loudest(read(audio_of(root, row)), 3.0))
            emotion = EMOTIONS[gender, pace[row["utterance"]] > median]
            lines.append(f"[0.0 - 3.0]\t{name}\t{emotion}\t[2.5, 2.5, 2.5]\n")
        evaluations = session / "dialog" / "EmoEvaluation" / f"{dialog}.txt"
        evaluations.parent.mkdir(parents=True, exist_ok=True)
        evaluations.write_text("".join(lines), "utf-8")


def quesst(root: pathlib.Path, keywords: list[Row], orders: list[Row], out: pathlib.Path, limit: Limit) -> None:
    def write_8khz(path: pathlib.Path, wave: np.ndarray) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, soxr.resample(wave, RATE, RATE // 2), RATE // 2, subtype="PCM_16")

    words = sorted({row["keyword"] for row in keywords})
    clips = {word: [row for row in keywords if row["keyword"] == word] for word in words}
    scoring = out / "scoring"
    scoring.mkdir(parents=True, exist_ok=True)
    documents: dict[str, str | None] = {}
    for number, row in enumerate(limit(orders[:DOCUMENTS])):
        wave, word = read(root / row["file"]), words[number // 2 % len(words)] if number % 2 else None
        if word:
            keyword = read(root / clips[word][-1 - number // 2 // len(words)]["file"])
            wave = np.concatenate([wave[: len(wave) // 2], keyword, wave[len(wave) // 2 :]])
        documents[f"quesst14_{number:05}"] = word
        write_8khz(out / "Audio" / f"quesst14_{number:05}.wav", wave)
    lines = [f"quesst14Database/Audio/{name}.wav nnenglish\n" for name in documents]
    (scoring / "language_key_utterances.lst").write_text("".join(lines), "utf-8")
    for part, first in (("dev", 0), ("eval", QUERIES)):
        queries: list[str] = []
        truth: list[str] = []
        for word in words:
            for row in limit(clips[word][first : first + QUERIES]):
                name = f"quesst14_{part}_{len(queries):04}"
                write_8khz(out / f"{part}_queries" / f"{name}.wav", read(root / row["file"]))
                queries.append(f"quesst14Database/{part}_queries/{name}.wav nnenglish\n")
                truth += [
                    f"LEXEME {document} 1 0.0 1.0 {name}\n" for document, held in documents.items() if held == word
                ]
        (scoring / f"language_key_{part}.lst").write_text("".join(queries), "utf-8")
        (scoring / f"groundtruth_quesst14_{part}").mkdir(exist_ok=True)
        (scoring / f"groundtruth_quesst14_{part}" / f"quesst14_{part}.rttm").write_text("".join(truth), "utf-8")


def voxceleb1(root: pathlib.Path, rows: list[Row], out: pathlib.Path, limit: Limit) -> None:
    """Every speaker's utterances of 3 s and more; a speaker of dev and test is not trained on."""
    tested: dict[str, list[str]] = {}
    for speaker in sorted({row["speaker"] for row in rows}, key=int):
        spoken = [row for row in rows if row["speaker"] == speaker and int(row["samples"]) >= 3 * RATE]
        split = "dev" if spoken[0]["text_split"] == "train" else "test"
        for row in limit(spoken[:UTTERANCES]):
            name = f"id1{int(speaker):04}/{row['chapter']}/{row['utterance']}.wav"
            write(out / split / "wav" / name, read(audio_of(root, row)))
            if split == "test":
                tested.setdefault(speaker, []).append(name)
    random = np.random.default_rng(0)
    lines = set()
    for speaker, names in tested.items():
        others = [name for other, names in tested.items() if other != speaker for name in names]
        for same, second in ((1, names), (0, others)):
            for _ in range(PAIRS):
                pair = random.choice(names), random.choice(second)
                lines |= {f"{same} {pair[0]} {pair[1]}\n"} if pair[0] != pair[1] else set()
    (out / "veri_test2.txt").write_text("".join(sorted(lines)), "utf-8")


def audio_of(root: pathlib.Path, row: Row) -> pathlib.Path:
    return root / "audio" / row["speaker"] / row["chapter"] / f"{row['utterance']}.opus"


def librimix(root: pathlib.Path, rows: list[Row], out: pathlib.Path, limit: Limit) -> None:
    """Mixtures as Libri2Mix's of mode max: two whole utterances, here one a random half second to three later."""
    random = np.random.default_rng(1)
    for split, mixtures in MIXTURES.items():
        chosen = [row for row in rows if row["text_split"] == split]
        tables: dict[str, list[str]] = {name: [] for name in ("wav.scp", "reco2dur", "segments", "utt2spk", "spk2utt")}
        for number in range(len(limit([{}] * mixtures))):
            first = chosen[random.integers(len(chosen))]
            others = [row for row in chosen if row["speaker"] != first["speaker"]]
            second = others[random.integers(len(others))]
            starts = 0, int(random.uniform(0.5, 3) * RATE)
            waves = [read(audio_of(root, row)) for row in (first, second)]
            mixture = np.zeros(max(start + len(wave) for start, wave in zip(starts, waves, strict=True)), np.float32)
            recording = f"{split}{number:03}"
            for row, start, wave in zip((first, second), starts, waves, strict=True):
                mixture[start : start + len(wave)] += wave / 2
                utterance = f"{row['speaker']}-{recording}"
                tables["segments"].append(
                    f"{utterance} {recording} {start / RATE:.3f} {(start + len(wave)) / RATE:.3f}"
                )
                tables["utt2spk"].append(f"{utterance} {row['speaker']}")
                tables["spk2utt"].append(f"{row['speaker']} {utterance}")
            path = out / "wav" / f"{recording}.wav"
            write(path, mixture)
            tables["wav.scp"].append(f"{recording} {path.resolve()}")
            tables["reco2dur"].append(f"{recording} {len(mixture) / RATE}")
        (out / split).mkdir(exist_ok=True)
        for name, lines in tables.items():
            (out / split / name).write_text("".join(f"{line}\n" for line in lines), "utf-8")


if __name__ == "__main__":
    main()
