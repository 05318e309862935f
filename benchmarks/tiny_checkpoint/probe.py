"""Probes a checkpoint's hidden states: phones and speakers by linear classifiers at several rates, and boundaries.

    python benchmarks/tiny_checkpoint/probe.py CORPUS CHECKPOINT... --out probes.json

Phones: a linear classifier of frames, trained on train speakers and scored on the 20 ms frames of test speakers at
every rate (a compressed frame stands for all 20 ms frames that it covers). Speakers: a linear classifier of an
utterance's mean frame. Both are also run on MFCCs with deltas. Boundaries: the ends of the frames at lambd 1 against
the alignments of test speakers, compared with the same number of equidistant boundaries. Only the first seconds of each
utterance are used.
"""

import argparse
import dataclasses
import json
import pathlib

import librosa
import numpy as np
import torch
import torch.nn.functional as F
from corpus import HOP, PHONES, SAMPLE_RATE, UNKNOWN, WINDOW, Utterance, num_frames, read_corpus
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import s3prl_ofa
from s3prl_ofa.guidance.scores import TOLERANCES, boundary_scores, uniform_boundaries
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.model import OFAWav2Vec2

SECONDS = 4.0  # of each utterance
PHONE_TRAIN, PHONE_TEST, SPEAKER_TRAIN = 100, 40, 10  # utterances; the last of each speaker
BATCH = 8
EPOCHS, FRAMES_A_STEP, LEARNING_RATE = 10, 512, 3e-3


@dataclasses.dataclass
class Features:
    """Features of an utterance: (layers, frames, dim), the frame of each 20 ms frame, times (frames, 2) in seconds."""

    layers: Tensor
    owner: Tensor
    times: Tensor


def crop(utterance: Utterance) -> np.ndarray:
    """The first seconds, float32."""
    return utterance.wave(int(SECONDS * SAMPLE_RATE)).astype(np.float32) / 2**15


def extract(model: OFAWav2Vec2, waves: list[np.ndarray], lambd: float) -> list[Features]:
    features = []
    for start in range(0, len(waves), BATCH):
        out = model.extract(waves[start : start + BATCH], lambd=lambd)
        states = torch.stack(out.hidden_states)
        for index, (frames, fine) in enumerate(zip(out.lengths.tolist(), out.input_lengths.tolist(), strict=True)):
            # What follows the last crossing belongs to no frame; the last frame stands for it.
            owner = out.frame_index[index, :fine].clamp(max=frames - 1)
            features.append(Features(states[:, index, :frames], owner, out.times[index, :frames]))
    return features


def mfcc(wave: np.ndarray) -> Features:
    """13 coefficients with deltas and delta-deltas, computed every 10 ms, of every 20 ms frame."""
    coefficients = librosa.feature.mfcc(
        y=wave, sr=SAMPLE_RATE, n_mfcc=13, n_fft=WINDOW, hop_length=HOP // 2, n_mels=40, center=False
    )
    deltas = [librosa.feature.delta(coefficients, width=9, order=order) for order in (1, 2)]
    values = np.concatenate([coefficients, *deltas]).T[::2][: num_frames(len(wave))]
    frame = torch.arange(len(values))
    times = torch.stack([frame, frame + 1], 1) * (HOP / SAMPLE_RATE)
    return Features(torch.from_numpy(values.astype(np.float32))[None], frame, times)


def phone_accuracies(train: list[Features], test: list[Features], utterances: list[list[Utterance]]) -> list[float]:
    """For each layer, a linear classifier's accuracy on the phones of the test utterances' 20 ms frames."""
    labels = [
        torch.from_numpy(utterance.labels(len(one.owner)))
        for part, group in zip((train, test), utterances, strict=True)
        for one, utterance in zip(part, group, strict=True)
    ]
    # The training label of a compressed frame is the phone of the 20 ms frame at its middle.
    middles = [(one.times.mean(1) * SAMPLE_RATE / HOP).long().clamp(max=len(one.owner) - 1) for one in train]
    train_labels = torch.cat([label[middle] for label, middle in zip(labels, middles, strict=False)])
    test_labels = torch.cat(labels[len(train) :])
    known, test_known = train_labels != UNKNOWN, test_labels != UNKNOWN
    accuracies = []
    for layer in range(train[0].layers.shape[0]):
        rows = torch.cat([one.layers[layer] for one in train])[known]
        mean, deviation = rows.mean(0), rows.std(0) + 1e-5
        classifier = fit((rows - mean) / deviation, train_labels[known])
        test_rows = torch.cat([one.layers[layer][one.owner] for one in test])[test_known]
        best = classifier((test_rows - mean) / deviation).argmax(1)
        accuracies.append((best == test_labels[test_known]).float().mean().item())
    return accuracies


def fit(rows: Tensor, labels: Tensor) -> torch.nn.Linear:
    """A linear classifier of rows (frames, dim), trained by AdamW with a learning rate that decays to zero."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    classifier = torch.nn.Linear(rows.shape[1], len(PHONES))
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=LEARNING_RATE, weight_decay=1e-3)
    steps = EPOCHS * (len(rows) // FRAMES_A_STEP)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(rows), generator=generator)
        for start in range(0, len(rows) - FRAMES_A_STEP + 1, FRAMES_A_STEP):
            chosen = order[start : start + FRAMES_A_STEP]
            optimizer.zero_grad()
            F.cross_entropy(classifier(rows[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return classifier.requires_grad_(False)


def speaker_accuracies(train: list[Features], test: list[Features], utterances: list[list[Utterance]]) -> list[float]:
    """For each layer, a linear classifier's accuracy on the speakers of the test utterances' mean frames."""
    speakers = [[utterance.speaker for utterance in group] for group in utterances]
    accuracies = []
    for layer in range(train[0].layers.shape[0]):
        means = [[one.layers[layer].mean(0).numpy() for one in part] for part in (train, test)]
        classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(means[0], speakers[0])
        accuracies.append(classifier.score(means[1], speakers[1]))
    return accuracies


def boundaries(features: list[Features], utterances: list[Utterance], seconds: list[float]) -> list[dict[str, object]]:
    """Scores of the frames' ends and of equidistant boundaries at each tolerance, without the ends of the crops."""
    found = [one.times[:-1, 1].tolist() for one in features]
    even = [uniform_boundaries(length, len(one)) for length, one in zip(seconds, found, strict=True)]
    wanted = [
        [start for start, _, _ in utterance.phones[1:] if start < length]
        for utterance, length in zip(utterances, seconds, strict=True)
    ]
    rows = []
    for tolerance in TOLERANCES:
        for name, times in (("frames at lambd 1", found), ("equal distances", even)):
            scores = boundary_scores(times, wanted, tolerance)
            values = {key: round(getattr(scores, key), 4) for key in ("precision", "recall", "f1", "r_value")}
            rows.append({"boundaries": name, "tolerance_ms": 1000 * tolerance, **values})
    return rows


class Probes:
    """The utterances of all probes, and the results for each kind of features."""

    def __init__(self, folder: pathlib.Path) -> None:
        corpus = read_corpus(folder)
        aligned = {
            split: [one for one in corpus if one.text_split == split and one.phones] for split in ("train", "test")
        }
        self.phones = [spread(aligned["train"], PHONE_TRAIN), spread(aligned["test"], PHONE_TEST)]
        by_speaker: dict[str, list[Utterance]] = {}
        for one in corpus:
            if one.speaker_split == "train":
                by_speaker.setdefault(one.speaker, []).append(one)
        enrolled = [one for group in by_speaker.values() for one in spread(group, SPEAKER_TRAIN)]
        self.speakers = [enrolled, [one for one in corpus if one.speaker_split == "test"]]
        names = {one.name: one for group in (*self.phones, *self.speakers) for one in group}
        self.waves = {name: crop(one) for name, one in names.items()}

    def rows(self, features: dict[str, Features], name: str, lambd: float) -> list[dict[str, object]]:
        """One result per layer."""
        fine = sum(len(one.owner) for one in features.values())
        period = 1000 * HOP / SAMPLE_RATE * fine / sum(len(one.times) for one in features.values())
        parts = [[[features[one.name] for one in group] for group in groups] for groups in (self.phones, self.speakers)]
        phones = phone_accuracies(*parts[0], self.phones)
        speakers = speaker_accuracies(*parts[1], self.speakers)
        return [
            {"features": name, "lambd": lambd, "period_ms": round(period, 2), "layer": layer}
            | {"phone_accuracy": round(phone, 4), "speaker_accuracy": round(speaker, 4)}
            for layer, (phone, speaker) in enumerate(zip(phones, speakers, strict=True))
        ]

    def checkpoint(self, path: str, lambds: list[float]) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        """Probes at every lambd that is possible with the checkpoint, and boundaries at lambd 1."""
        model = s3prl_ofa.load(path)
        probes, segments = [], []
        for lambd in lambds if model.compressor is not None else [0.0]:
            found = extract(model, list(self.waves.values()), lambd)
            features = dict(zip(self.waves, found, strict=True))
            probes += self.rows(features, str(path), lambd)
            if lambd == 1.0:
                test = self.phones[1]
                seconds = [len(self.waves[one.name]) / SAMPLE_RATE for one in test]
                rows = boundaries([features[one.name] for one in test], test, seconds)
                segments = [{"features": str(path), **row} for row in rows]
        return probes, segments


def spread(items: list[Utterance], count: int) -> list[Utterance]:
    """``count`` items, evenly spaced over the list."""
    return [items[index] for index in np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)]


def show(rows: list[dict[str, object]]) -> None:
    if rows:
        print(*rows[0], sep="\t")
        for row in rows:
            print(*row.values(), sep="\t")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=pathlib.Path)
    parser.add_argument("checkpoints", nargs="+", help="of any format that s3prl_ofa.load reads, or tiny")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="a JSON file")
    parser.add_argument(
        "--lambds", type=float, nargs="+", default=[0.0, 0.5, 1.0], help="for checkpoints with a compressor"
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    probes = Probes(args.corpus)
    results = probes.rows({name: mfcc(wave) for name, wave in probes.waves.items()}, "MFCC", 0.0)
    segments = []
    for path in args.checkpoints:
        rows, found = probes.checkpoint(path, args.lambds)
        results += rows
        segments += found
    show(results)
    show(segments)
    with atomic_path(args.out) as temporary:
        temporary.write_text(json.dumps({"probes": results, "boundaries": segments}, indent=1) + "\n")


if __name__ == "__main__":
    main()
