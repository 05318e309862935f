"""Small synthetic corpora with the layout of LibriSpeech and VoxCeleb1, for tests that run S3PRL's tasks."""

import pathlib

import numpy as np
import soundfile

SAMPLE_RATE = 16_000  # Hz
SENTENCES = ("THE CAT", "A DOG SAT", "THAT HAT", "GOOD DOG", "A CAT SAT", "THE HAT", "THAT CAT", "A GOOD HAT")
PHONES = {
    "A": "AH0",
    "CAT": "K AE1 T",
    "DOG": "D AO1 G",
    "GOOD": "G UH1 D",
    "HAT": "HH AE1 T",
    "SAT": "S AE1 T",
    "THAT": "DH AE1 T",
    "THE": "DH AH0",
}
SPLITS = {"train-mini": 6, "dev-mini": 2, "test-mini": 2}  # utterances of each
SPEAKERS = ("id10001", "id10002")


def noise(seconds: float, seed: int) -> np.ndarray:
    """A wave (samples,) of varying loudness, so that its frames differ."""
    samples = round(seconds * SAMPLE_RATE)
    envelope = 0.55 + 0.45 * np.sin(2 * np.pi * 3 * np.arange(samples) / SAMPLE_RATE)
    return (0.1 * envelope * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def make_corpora(root: pathlib.Path) -> None:
    """Makes ROOT/LibriSpeech, ROOT/VoxCeleb1 and ROOT/prepared (bucket lengths, lexicon, speaker list)."""
    make_librispeech(root)
    make_voxceleb1(root)


def make_librispeech(root: pathlib.Path) -> None:
    seed = 0
    (root / "prepared" / "bucket").mkdir(parents=True)
    for split, utterances in SPLITS.items():
        folder = root / "LibriSpeech" / split / "11" / "22"
        folder.mkdir(parents=True)
        transcripts, rows = [], []
        for index in range(utterances):
            wave = noise(2.0 + 0.15 * index, seed)
            soundfile.write(folder / f"11-22-{seed:04}.flac", wave, SAMPLE_RATE)
            transcripts.append(f"11-22-{seed:04} {SENTENCES[seed % len(SENTENCES)]}\n")
            rows.append(f"{split}/11/22/11-22-{seed:04}.flac,{len(wave)}\n")
            seed += 1
        (folder / "11-22.trans.txt").write_text("".join(transcripts))
        (root / "prepared" / "bucket" / f"{split}.csv").write_text("file_path,length\n" + "".join(reversed(rows)))
    (root / "prepared" / "lexicon.txt").write_text("".join(f"{word}\t{phones}\n" for word, phones in PHONES.items()))


def make_voxceleb1(root: pathlib.Path) -> None:
    (root / "prepared").mkdir(exist_ok=True, parents=True)
    lines = []
    for number, speaker in enumerate(SPEAKERS):
        folder = root / "VoxCeleb1" / "dev" / "wav" / speaker / "video"
        folder.mkdir(parents=True)
        for part in (1, 1, 2, 3):
            name = f"{len(lines):05}.wav"
            soundfile.write(folder / name, noise(1.5 + 0.1 * len(lines), 100 + len(lines)) * (1 + number), SAMPLE_RATE)
            lines.append(f"{part} {speaker}/video/{name}\n")
    (root / "prepared" / "veri_test_class.txt").write_text("".join(lines))
