"""Makes the bundled audio with espeak-ng (1.51 was used): ``python -m s3prl_ofa.demo.make_audio OUT``.

It documents where the files come from; nobody needs to run it.
"""

import argparse
import pathlib
import subprocess
import tempfile

import numpy as np
import soundfile

from s3prl_ofa.io.audio import SAMPLE_RATE, load_audio

PEAK = 0.5  # of full scale, for all utterances, so that loudness does not tell voices apart
# espeak-ng voice, pitch (0 to 99), words per minute
VOICES = (
    ("en-us+m3", 20, 165),
    ("en-us+f2", 75, 170),
    ("en-gb+klatt", 40, 160),
    ("en-gb-scotland+m7", 5, 155),
    ("en-us+Annie", 60, 175),
    ("en-029+croak", 30, 160),
    ("en-us-nyc+f5", 95, 180),
    ("en-gb-x-rp+whisper", 50, 160),
)
TRAIN = (
    "The harbour was quiet when the first boats came in.",
    "She counted eleven grey birds on the wire above the road.",
    "A good map is worth more than a fast horse.",
    "Please put the heavy boxes next to the kitchen door.",
    "Rain fell all night, and the river rose by a foot.",
    "He could not find the key that opened the garden shed.",
    "Nine children were playing football behind the old mill.",
    "The teacher wrote a short question on the board.",
    "We sailed past the island just before the sun went down.",
    "Nobody remembers who built the stone bridge over the valley.",
)
DEV = (
    "My brother repairs clocks in a small shop near the station.",
    "Every morning the baker opens his window and sings.",
)
TEST = (
    "Thick fog covered the fields, so the train was two hours late.",
    "Could you bring me a glass of water and the blue book?",
    "The wind turned to the north and the air smelled of snow.",
)
PARTS = ((1, "dev", TRAIN), (2, "dev", DEV), (3, "test", TEST))  # number in VoxCeleb1's list, folder, sentences


def speak(text: str, voice: str, pitch: int, speed: int) -> np.ndarray:
    """One utterance (samples,), float32, 16 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "utterance.wav")
        command = ["espeak-ng", "-v", voice, "-p", str(pitch), "-s", str(speed), "-w", str(path), text]
        subprocess.run(command, check=True)
        wave = load_audio(path)
    return wave * (PEAK / np.abs(wave).max())


def make(out: pathlib.Path) -> None:
    """Writes audio, split list and transcripts to ``out``, laid out as in VoxCeleb1."""
    listing, transcripts = [], []
    for number, voice in enumerate(VOICES, start=1):
        for split, part, sentences in PARTS:
            for sentence, text in enumerate(sentences, start=1):
                name = f"id1{number:04d}/{('train', 'dev', 'test')[split - 1]}/{sentence:05d}.opus"
                path = out / part / "wav" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(path, speak(text, *voice), SAMPLE_RATE, format="OGG", subtype="OPUS")
                listing.append(f"{split} {name}\n")
                transcripts.append(f"{name}\t{text}\n")
    (out / "veri_test_class.txt").write_text("".join(listing), "utf-8")
    (out / "transcripts.tsv").write_text("".join(transcripts), "utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path)
    make(parser.parse_args().out)
