"""Makes the bundled audio and its phone alignment with espeak-ng 1.51: ``python -m s3prl_ofa.demo.make_audio OUT``.

It documents where the files come from; you do not need to run it.
"""

import argparse
import ctypes
import gzip
import multiprocessing
import pathlib
import subprocess
import tempfile

import numpy as np
import soundfile

from s3prl_ofa.io.audio import SAMPLE_RATE, load_audio

PEAK = 0.5  # of full scale, for all utterances, so that voices do not differ in loudness
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


# The part of espeak-ng's C interface (speak_lib.h) that reports when each phone of an utterance begins.
RETRIEVAL, PHONEME_EVENTS, IPA = 2, 1, 2
RATE_PARAMETER, PITCH_PARAMETER = 1, 3
UTF8, END_PAUSE = 1, 0x1000
PHONEME_EVENT, LAST_EVENT = 7, 8


class Event(ctypes.Structure):
    """espeak_EVENT; ``phone`` is the member of its union that a phoneme event uses."""

    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("phone", ctypes.c_char * 8),
    ]


class Voice(ctypes.Structure):
    """espeak_VOICE, of which only ``languages`` is used."""

    _fields_ = [
        ("name", ctypes.c_char_p),
        ("languages", ctypes.c_char_p),
        ("identifier", ctypes.c_char_p),
        ("numbers", ctypes.c_ubyte * 4),
        ("score", ctypes.c_int),
        ("spare", ctypes.c_void_p),
    ]


def phones(text: str, voice: str, pitch: int, speed: int) -> list[tuple[float, float, str]]:
    """(start, end, phone) of what ``speak`` says, in seconds and IPA; pauses are ``sil``. Call it once per process: the
    library carries the state of a voice over to the next."""
    library = ctypes.CDLL("libespeak-ng.so.1")
    callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))
    starts: list[tuple[int, str]] = []
    samples = 0

    @callback
    def heard(wave: object, length: int, events: object) -> int:
        nonlocal samples
        samples += length
        for event in events:
            if not event.type or event.type > LAST_EVENT:
                return 0
            if event.type == PHONEME_EVENT:
                starts.append((event.sample, event.phone.decode() or "sil"))

    rate = library.espeak_Initialize(RETRIEVAL, 0, None, PHONEME_EVENTS | IPA)
    library.espeak_SetSynthCallback(heard)
    if library.espeak_SetVoiceByName(voice.encode()):  # as espeak-ng itself does, -v may be a language too
        library.espeak_SetVoiceByProperties(ctypes.byref(Voice(languages=voice.encode())))
    library.espeak_SetParameter(RATE_PARAMETER, speed, 0)
    library.espeak_SetParameter(PITCH_PARAMETER, pitch, 0)
    data = text.encode()
    library.espeak_Synth(data, len(data) + 1, 0, 1, 0, UTF8 | END_PAUSE, None, None)
    library.espeak_Synchronize()
    ends = [start for start, _ in starts[1:]] + [samples]
    intervals = zip(starts, ends, strict=True)
    return [(start / rate, end / rate, phone) for (start, phone), end in intervals if end > start]


def make(out: pathlib.Path) -> None:
    """Writes audio, split list, transcripts and phones to ``out``, laid out as in VoxCeleb1."""
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
    align(out)


def align(out: pathlib.Path) -> None:
    """Writes ``phones.ctm.gz`` for the files that ``transcripts.tsv`` lists."""
    lines = [line.split("\t") for line in (out / "transcripts.tsv").read_text("utf-8").splitlines()]
    spoken = [(text, *VOICES[int(name[len("id1") :].split("/")[0]) - 1]) for name, text in lines]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        found = pool.starmap(phones, spoken, chunksize=1)
    ctm = "".join(
        f"{name.removesuffix('.opus')} 1 {start:.3f} {end - start:.3f} {phone}\n"
        for (name, _), intervals in zip(lines, found, strict=True)
        for start, end, phone in intervals
    )
    (out / "phones.ctm.gz").write_bytes(gzip.compress(ctm.encode("utf-8"), mtime=0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=pathlib.Path)
    make(parser.parse_args().out)
