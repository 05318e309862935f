"""Small synthetic corpora with the layouts of SUPERB's, for tests that run S3PRL's tasks."""

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
KEYWORD_SPEAKERS = {"train": "acdef", "dev": "pt", "left out": "bi"}  # by S3PRL's hash of these names
INTENTS = ("activate,music,none", "increase,heat,kitchen", "activate,heat,kitchen")


def noise(seconds: float, seed: int) -> np.ndarray:
    """A wave (samples,) of varying loudness, so that its frames differ."""
    samples = round(seconds * SAMPLE_RATE)
    envelope = 0.55 + 0.45 * np.sin(2 * np.pi * 3 * np.arange(samples) / SAMPLE_RATE)
    return (0.1 * envelope * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)


def make_corpora(root: pathlib.Path) -> None:
    """Makes ROOT/LibriSpeech, ROOT/VoxCeleb1, ROOT/prepared (bucket lengths, lexicon, speaker list), and the corpora of
    the other tasks."""
    make_librispeech(root)
    make_voxceleb1(root)
    make_speech_commands(root / "speech_commands")
    make_fluent(root / "fluent_speech_commands_dataset")
    make_snips(root / "SNIPS")
    make_verification(root / "verification")
    make_librimix(root / "LibriMix")
    make_iemocap(root / "IEMOCAP_full_release")
    make_quesst(root / "quesst14Database")


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


def make_verification(root: pathlib.Path) -> None:
    """Like VoxCeleb1, with utterances of 2 s and more to train on, others of half a second, and pairs of them."""
    names = []
    for seed in range(8):
        split, speaker = ("dev", "test")[seed % 2], f"id1{seed % 4:04}"
        names.append(f"{speaker}/video/{seed}.wav")
        write(root / split / "wav" / names[-1], 2.3 + 0.1 * seed if split == "dev" else 0.5, 500 + seed)
    same, other = f"1 {names[1]} {names[5]}\n", f"0 {names[1]} {names[3]}\n"
    (root / "veri_test2.txt").write_text(same + other)


def write(path: pathlib.Path, seconds: float, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, noise(seconds, seed), SAMPLE_RATE)


def make_speech_commands(root: pathlib.Path) -> None:
    train, test = root / "speech_commands_v0.01", root / "speech_commands_test_set_v0.01"
    seed = 200
    for folder, words in ((train, ("yes", "no", "bed")), (test, ("yes", "no", "_unknown_"))):
        for word in words:
            for speaker in "".join(KEYWORD_SPEAKERS.values()) if folder == train else "z":
                seed += 1
                write(folder / word / f"{speaker}_nohash_0.wav", 0.9, seed)
    write(train / "_background_noise_" / "hum.wav", 1.5, seed + 1)
    write(test / "_silence_" / "0.wav", 1.0, seed + 2)


def make_fluent(root: pathlib.Path) -> None:
    (root / "data").mkdir(parents=True)
    for part, count in (("train", 4), ("valid", 2), ("test", 2)):
        rows = [f"{index},wavs/{part}{index}.wav,{INTENTS[index % len(INTENTS)]}" for index in range(count)]
        for index in range(count):
            write(root / "wavs" / f"{part}{index}.wav", 0.8 + 0.1 * index, 300 + index)
        (root / "data" / f"{part}_data.csv").write_text("\n".join([",path,action,object,location", *rows]))


def make_snips(root: pathlib.Path) -> None:
    lines = []
    for part, count in (("train", 4), ("valid", 2), ("test", 2)):
        for index in range(count):
            write(root / part / f"Ivy-{part}-{index}.wav", 1.5 + 0.1 * index, 400 + index)
            lines.append(f"Ivy-{part}-{index} BOS PLAY A HIT EOS\tO O O {'song' if index % 2 else 'O'} PlayMusic\n")
    (root / "all.iob.snips.txt").write_text("".join(lines))
    (root / "slots.txt").write_text("O\nsong\nartist")


def make_librimix(root: pathlib.Path) -> None:
    """Two recordings of 5.02 s for each part, in which two speakers take turns; the last piece is one frame."""
    turns = ((0.0, 1.0), (1.0, 2.2), (2.2, 5.02))  # seconds
    for part in ("train", "dev", "test"):
        files = {"segments": "", "utt2spk": "", "wav.scp": "", "reco2dur": "", "spk2utt": ""}
        for number in range(2):
            recording = f"{part}{number}"
            write(root / "wav" / f"{recording}.wav", turns[-1][1], 600 + number)
            files["wav.scp"] += f"{recording} {root}/wav/{recording}.wav\n"
            files["reco2dur"] += f"{recording} {turns[-1][1]}\n"
            for turn, (start, end) in enumerate(turns):
                files["segments"] += f"{recording}-{turn} {recording} {start} {end}\n"
                files["utt2spk"] += f"{recording}-{turn} speaker{turn % 2}\n"
        (root / part).mkdir()
        for name, text in files.items():
            (root / part / name).write_text(text)


def make_iemocap(root: pathlib.Path) -> None:
    """Two sessions; the last emotion of each is not one of SUPERB's."""
    for session in ("Session1", "Session2"):
        evaluations = root / session / "dialog" / "EmoEvaluation" / "Ses_impro01.txt"
        evaluations.parent.mkdir(parents=True)
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for number, emotion in enumerate(
            ("neu", "exc", "hap", "ang", "sad", "fru") * (1 if session == "Session1" else 5)
        ):
            name = f"Ses_impro01_{number:03}"
            write(root / session / "sentences" / "wav" / "Ses_impro01" / f"{name}.wav", 0.5, 700 + number)
            lines.append(f"[6.2901 - 8.2357]\t{name}\t{emotion}\t[2.5000, 2.5000, 2.5000]")
        evaluations.write_text("\n".join(lines))


def make_quesst(root: pathlib.Path) -> None:
    """Three documents, of which the first is the only query of each part and half a second before and after it."""
    scoring = root / "scoring"
    for number in range(3):
        write(root / "Audio" / f"quesst14_{number:05}.wav", 1.5, 800 + number)
    wave, _ = soundfile.read(root / "Audio" / "quesst14_00000.wav")
    for part in ("dev", "eval"):
        query = f"quesst14_{part}_0000"
        (root / f"{part}_queries").mkdir()
        soundfile.write(root / f"{part}_queries" / f"{query}.wav", wave[8_000:16_000], SAMPLE_RATE)
        truth = scoring / f"groundtruth_quesst14_{part}" / f"quesst14_{part}.rttm"
        truth.parent.mkdir(parents=True)
        truth.write_text(f"LEXEME quesst14_00000 1 0.5 0.5 {query}\n")
        (scoring / f"language_key_{part}.lst").write_text(
            f"x/{part}_queries/{query}.wav nnenglish\nx/{part}_queries/other.wav czech\n"
        )
    lines = [f"x/Audio/quesst14_{number:05}.wav nnenglish\n" for number in range(3)]
    (scoring / "language_key_utterances.lst").write_text("".join(lines))
