"""Reading audio of any format, rate and channel count."""

import os
import re
import shlex
import struct

import numpy as np
import pytest
import soundfile
import soxr

from s3prl_ofa.io.audio import AudioError, check_speech, duration, find_audio, load_audio, load_speech
from s3prl_ofa.io.audio_headers import sample_bytes
from s3prl_ofa.io.files import printable
from s3prl_ofa.model import SAMPLE_RATE


def test_one_sample_rate():
    """audio.py repeats the rate to avoid importing torch; it must be the model's."""
    from s3prl_ofa.io import audio

    assert audio.SAMPLE_RATE == SAMPLE_RATE


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_rate_is_16_khz(tmp_path, make_wave, rate):
    """Every rate becomes 16 kHz; resampling in blocks gives the same as soxr does for the whole wave."""
    wave = make_wave(70.0, rate=rate)  # longer than two blocks
    soundfile.write(tmp_path / "a.wav", wave, rate, subtype="FLOAT")
    loaded = load_audio(tmp_path / "a.wav")
    whole = wave if rate == SAMPLE_RATE else soxr.resample(wave, rate, SAMPLE_RATE)
    assert loaded.dtype == np.float32 and len(loaded) == len(whole) == 70 * SAMPLE_RATE
    assert np.abs(loaded - whole).max() < 1e-3
    assert duration(tmp_path / "a.wav") == pytest.approx(70.0)


def test_channels_are_averaged(tmp_path, make_wave):
    """Stereo is mixed to mono."""
    stereo = np.stack([make_wave(0.2, 1), make_wave(0.2, 2)], 1)
    soundfile.write(tmp_path / "a.wav", stereo, SAMPLE_RATE, subtype="FLOAT")
    assert np.allclose(load_audio(tmp_path / "a.wav"), stereo.mean(1))


def test_formats(audio_folder):
    """FLAC, WAV, MP3 and Opus files are found in folders and read; other files are ignored."""
    found = find_audio(audio_folder)
    assert [path.name for path in found] == ["a.flac", "a.wav", "b.mp3", "c.opus"]
    assert [len(load_audio(path)) / SAMPLE_RATE for path in found] == pytest.approx([1.0, 0.7, 0.5, 0.8], abs=0.01)


def test_hidden_files_are_no_audio(tmp_path, make_wave):
    """Files that other systems leave beside audio (._a.wav) are ignored."""
    (tmp_path / ".trash").mkdir()
    for name in ("._a.wav", ".trash/b.wav"):
        soundfile.write(tmp_path / name, make_wave(0.1), SAMPLE_RATE)
    assert find_audio(tmp_path) == []


@pytest.mark.parametrize(("link", "target"), [("a_loop", "."), ("deep/er/up", "../.."), ("another_way", "deep/er")])
def test_every_folder_is_searched_once(audio_folder, link, target):
    """A loop of links, or a second path to a folder, does not give its files twice or under another name."""
    expected = find_audio(audio_folder)
    (audio_folder / link).symlink_to(target)
    assert find_audio(audio_folder) == expected


def test_links_to_folders_are_followed(audio_folder, tmp_path, make_wave):
    """Linked folders are searched once, even if they link back."""
    expected = find_audio(audio_folder)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    soundfile.write(elsewhere / "d.wav", make_wave(0.1), SAMPLE_RATE)
    (elsewhere / "back").symlink_to(audio_folder)
    (audio_folder / "one").symlink_to(elsewhere)
    (audio_folder / "two").symlink_to(elsewhere)
    assert find_audio(audio_folder) == sorted([*expected, audio_folder / "one" / "d.wav"])


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "empty file"), (b"no audio at all" * 99, "cannot be read as audio")],
)
def test_what_is_no_audio(tmp_path, content, message):
    """A missing file, an empty one and one that is not audio are described in one sentence."""
    path = tmp_path / "a.wav"
    if content is not None:
        path.write_bytes(content)
    for function in (load_audio, duration):
        with pytest.raises(AudioError, match=message):
            function(path)


def test_unclear_messages_of_libsndfile(tmp_path, make_wave):
    """A web page named .mp3 is not said to be missing or a pipe, and a rate of 0 is the header's fault."""
    (tmp_path / "a.mp3").write_bytes(b"<!DOCTYPE html>" * 99)
    soundfile.write(tmp_path / "a.wav", make_wave(0.1), 16_000)
    content = (tmp_path / "a.wav").read_bytes()
    (tmp_path / "a.wav").write_bytes(content[:24] + bytes(4) + content[28:])
    for name, message in (("a.mp3", "Format not recognised"), ("a.wav", "its header contradicts itself")):
        with pytest.raises(AudioError, match=rf"^cannot be read as audio \({message}\)$"):
            load_audio(tmp_path / name)


@pytest.mark.parametrize(("name", "rate"), [("a.flac", 16_000), ("a.mp3", 44_100)])
def test_damaged(tmp_path, make_wave, name, rate):
    """A truncated file is not silently read as a shorter one."""
    path = tmp_path / name
    soundfile.write(path, make_wave(3.0, rate=rate), rate)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match="damaged"):
        load_audio(path)


LONG_LIST = b"INFO" + 100 * (b"ICMT" + struct.pack("<I", 40) + b"x" * 40)


KINDS = ["WAV", "WAVEX", "RF64", "AIFF", "RIFX", "AU", "little AU", "W64", "CAF", "NIST", "after a long list"]


@pytest.mark.parametrize("kind", KINDS)
def test_cut_short(tmp_path, make_wave, kind):
    """libsndfile reads a truncated WAV, AIFF, AU, ... as a shorter one; here it is refused, a whole one is not."""
    path = tmp_path / "a.wav"
    options = {"format": {"RIFX": "WAV", "little AU": "AU", "after a long list": "WAV"}.get(kind, kind)}
    options["endian"] = {"RIFX": "BIG", "little AU": "LITTLE"}.get(kind, "FILE")
    soundfile.write(path, make_wave(1.0)[:15_999], SAMPLE_RATE, subtype="PCM_24", **options)
    whole = path.read_bytes()
    if kind == "after a long list":
        whole = whole[:36] + b"LIST" + struct.pack("<I", len(LONG_LIST)) + LONG_LIST + whole[36:]
        path.write_bytes(whole)
    assert len(load_audio(path)) == 15_999
    for missing in (4000, len(whole) // 2):
        path.write_bytes(whole[:-missing])
        for function in (load_audio, duration):
            with pytest.raises(AudioError, match="cut short: "):
                function(path)


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_cut_ogg(tmp_path, make_wave, subtype):
    """An Ogg file that ends within a page or its header is refused; a whole one is not, with or without trailing
    garbage."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, make_wave(3.0), SAMPLE_RATE, format="OGG", subtype=subtype)
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0" * 100)
    assert len(load_audio(path)) == 3 * SAMPLE_RATE
    for end in (len(whole) - 1, len(whole) // 2, whole.rindex(b"OggS") + 10, whole.rindex(b"OggS") + 30):
        path.write_bytes(whole[:end])
        with pytest.raises(AudioError, match="cut short: "):
            load_audio(path)


def test_pages_of_ogg(tmp_path, make_wave):
    """What libsndfile passes over is refused: a missing page, a damaged one, and a second recording."""
    path = tmp_path / "a.ogg"
    soundfile.write(path, make_wave(9.0), SAMPLE_RATE, format="OGG", subtype="VORBIS")
    whole = path.read_bytes()
    pages = [found.start() for found in re.finditer(b"OggS", whole)]
    assert len(pages) > 5 and len(load_audio(path)) == 9 * SAMPLE_RATE
    for content, message in (
        (whole[: pages[3]] + whole[pages[4] :], "its page 3 is missing"),
        (whole[: pages[3]] + bytes(9) + whole[pages[3] + 9 :], "bytes between its pages are damaged"),
        (whole + whole, "it holds several recordings"),
    ):
        path.write_bytes(content)
        with pytest.raises(AudioError, match=f"^damaged: {message}"):
            check_speech(path)


@pytest.mark.parametrize(("kind", "at"), [("AU", 8), ("CAF", -1), ("W64", -1)])
def test_unknown_sizes(tmp_path, make_wave, kind, at):
    """A size that was unknown when the header was written declares nothing; libsndfile reads such an AU file."""
    path = tmp_path / f"a.{kind.lower()}"
    soundfile.write(path, make_wave(0.5), SAMPLE_RATE, format=kind)
    data = path.read_bytes()
    width = 4 if kind == "AU" else 8
    at = at if kind == "AU" else data.index(b"data") + (4 if kind == "CAF" else 16)
    path.write_bytes(data[:at] + b"\xff" * width + data[at + width :])
    assert sample_bytes(path)[0] >= 2 ** (8 * width) - 25  # it is read, and declares nothing
    if kind == "AU":  # libsndfile does not read such W64 and CAF files
        assert len(load_audio(path)) == SAMPLE_RATE // 2


@pytest.mark.parametrize(("kind", "tag"), [("W64", b"data"), ("CAF", b"data"), ("NIST", b"sample_n_bytes")])
def test_garbage_headers(tmp_path, make_wave, kind, tag):
    """Sizes that point past the end of the file, or nowhere, are not followed and raise nothing."""
    path = tmp_path / "a"
    soundfile.write(path, make_wave(0.5), SAMPLE_RATE, format=kind)
    data = path.read_bytes()
    at = data.index(tag)
    for garbage in (b"\xfe" * 28, b"\0" * 28, b"\x7f" * 28):
        path.write_bytes(data[:at] + garbage + data[at + 28 :])
        assert sample_bytes(path) == (0, 0)
        path.write_bytes(data[:at] + garbage[:5])
        assert sample_bytes(path) == (0, 0)


@pytest.mark.parametrize("size", [0xFFFF_FFFF, 0xFFFF_FFFF - 36, 0x7FFF_F000, 0x8000_0000, 2001])
def test_placeholder_sizes(tmp_path, size):
    """Files of programs that stream (largest number) or count a byte of padding (2001) are not truncated."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.ones(1000, np.int16), SAMPLE_RATE)
    data = path.read_bytes()
    assert data[36:44] == b"data" + struct.pack("<I", 2000)
    path.write_bytes(data[:40] + struct.pack("<I", size) + data[44:])
    assert len(load_audio(path)) == 1000


@pytest.mark.parametrize("tail", [b"LIST\x04\0\0\0INFO", b"\0" * 1000, b"junk", b""])
def test_trailing_chunks(tmp_path, tail):
    """Chunks and garbage after the samples, and an odd number of bytes without padding, are not truncation."""
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(1001), SAMPLE_RATE, subtype="PCM_U8")
    data = path.read_bytes()[: 44 + 1001]
    path.write_bytes(data + (b"\0" + tail if tail else b""))
    assert len(load_audio(path)) == 1001


def test_path_that_is_not_utf8(tmp_path, make_wave):
    """It raises AudioError, and no other exception."""
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav")
    soundfile.write(tmp_path / "a.wav", make_wave(0.1), SAMPLE_RATE)
    os.rename(tmp_path / "a.wav", path)
    with pytest.raises(AudioError, match="not UTF-8"):
        load_audio(path)


def test_impossible_samples(tmp_path):
    """A header without samples, and values that are not finite or far too large, are refused."""
    soundfile.write(tmp_path / "a.wav", np.zeros(0, np.float32), SAMPLE_RATE)
    with pytest.raises(AudioError, match="no samples"):
        load_audio(tmp_path / "a.wav")
    wave = np.zeros(1000, np.float32)
    for value, message in ((np.nan, "NaN"), (-np.inf, "infinite"), (-1e30, r"as large as 1e\+30; expected -1 to 1")):
        wave[500] = value
        soundfile.write(tmp_path / "b.wav", wave, SAMPLE_RATE, subtype="FLOAT")
        for function in (load_audio, load_speech):
            with pytest.raises(AudioError, match=message):
                function(tmp_path / "b.wav")
    wave[500] = 2**15  # 16-bit integers in a float file
    soundfile.write(tmp_path / "b.wav", wave, SAMPLE_RATE, subtype="FLOAT")
    assert load_audio(tmp_path / "b.wav").max() == 2**15


@pytest.mark.parametrize("rate", [1, 2, 50, 999, 768_001])
def test_absurd_rates(tmp_path, rate):
    """A header of 1 to 50 Hz is refused at once: 2,000 samples at 2 Hz would be resampled for minutes."""
    soundfile.write(tmp_path / "a.wav", np.zeros(2000, np.int16), rate)
    for function in (load_audio, duration, check_speech, load_speech):
        with pytest.raises(AudioError, match=f"its header says {rate} Hz; expected 1000 to 768000 Hz"):
            function(tmp_path / "a.wav")


OTHERS = ("a.m4a", "b.MP4", "c.aac", "d.webm", "e.wma", "f.amr", "g.mka", "h.3gp", "i.ape", "j.wv", "k.m4b", "l.mov")


def test_formats_that_cannot_be_read_are_found(tmp_path):
    """They are found, and reading one says how to convert it, with a command that can be pasted."""
    for name in OTHERS:
        (tmp_path / name).write_bytes(b"\0\0\0\x20ftypM4A " * 20)
    assert [path.name for path in find_audio(tmp_path)] == sorted(OTHERS)
    for path in find_audio(tmp_path):
        with pytest.raises(AudioError, match=f"ffmpeg -i {path.name} -ac 1 -ar 16000 {path.stem}.wav$"):
            duration(path)
    for name in ("x.raw", "y.PCM"):  # only their owner knows what they hold
        (tmp_path / name).write_bytes(bytes(32_000))
        assert tmp_path / name in find_audio(tmp_path)
        with pytest.raises(AudioError, match=f"ffmpeg -f s16le -ar RATE -ac CHANNELS -i {name} -ac 1 -ar 16000"):
            load_audio(tmp_path / name)
    (tmp_path / "o'clock news.m4a").write_bytes(b"no audio")
    with pytest.raises(AudioError) as caught:
        load_audio(tmp_path / "o'clock news.m4a")
    assert shlex.split(str(caught.value).partition("convert it: ")[2])[2::5] == ["o'clock news.m4a", "o'clock news.wav"]


def test_folders_that_cannot_be_searched_are_named(tmp_path, make_wave, closed_folders):
    """A folder without permission is in the result, and reading it says so; the others are searched."""
    for name in ("closed", "open"):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", make_wave(0.1), SAMPLE_RATE)
    assert find_audio(tmp_path) == [tmp_path / "closed", tmp_path / "open" / "a.wav"]
    with pytest.raises(AudioError, match=r"a folder that cannot be searched \(Permission denied\)"):
        check_speech(tmp_path / "closed")
    with pytest.raises(AudioError, match="a folder; expected a file"):
        check_speech(tmp_path / "open")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_pipes_are_not_waited_for(tmp_path):
    """A named pipe among the audio is an error at once: opening it would wait for a writer."""
    os.mkfifo(tmp_path / "a.wav")
    for function in (load_audio, duration, check_speech):
        with pytest.raises(AudioError, match="a pipe, socket or device"):
            function(tmp_path / "a.wav")


def test_what_speech_is(tmp_path, make_wave):
    """16 kHz, mono, 400 samples, complete: header and whole file are judged alike, and errors of reading the whole
    name the file."""
    path = tmp_path / "a\nb.flac"
    soundfile.write(path, make_wave(0.025), SAMPLE_RATE, format="FLAC")
    assert check_speech(path) == check_speech(path, verify=True) == len(load_speech(path)) == 400
    for wave, rate, words in (
        (make_wave(0.025)[1:], SAMPLE_RATE, "399 samples; at least 400"),
        (make_wave(1.0), 48_000, "48000 Hz with 1 channel; expected 16000 Hz mono"),
        (np.stack([make_wave(1.0)] * 2, 1), SAMPLE_RATE, "16000 Hz with 2 channels"),
    ):
        soundfile.write(path, wave, rate, format="FLAC")
        for verify in (False, True):
            with pytest.raises(AudioError, match=f"^{words}"):
                check_speech(path, verify)
        with pytest.raises(AudioError, match=rf"a\\nb.flac: {words}"):
            load_speech(path)
    soundfile.write(path, make_wave(3.0), SAMPLE_RATE, format="FLAC")
    content = path.read_bytes()
    for end in (len(content) // 3, -1):
        path.write_bytes(content[:end])
        with pytest.raises(AudioError, match="^cut short: the last of the 48000 samples"):
            check_speech(path)
    path.write_bytes(content[: len(content) // 2] + bytes(200) + content[len(content) // 2 + 200 :])
    assert check_speech(path) == 3 * SAMPLE_RATE
    with pytest.raises(AudioError, match="^damaged"):
        check_speech(path, verify=True)
    with pytest.raises(AudioError, match=r"a\\nb.flac: damaged"):
        load_speech(path)


def test_formats_whose_size_is_not_in_their_header(tmp_path, make_wave):
    """Only decoding shows that a file in another format, such as SDS, is cut, although its samples are integer PCM."""
    path = tmp_path / "a.sds"
    soundfile.write(path, make_wave(2.0), SAMPLE_RATE)
    assert check_speech(path, verify=True) >= 2 * SAMPLE_RATE
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match="^damaged"):
        check_speech(path, verify=True)


# store no length; have no header, are not read back from one file, or have a rate of their own
UNKNOWN_LENGTH, NOT_TRIED, MONO = {"IRCAM", "PAF", "PVF"}, {"RAW", "SD2", "WVE", "XI"}, {"HTK", "SDS", "SVX"}


@pytest.mark.parametrize("kind", sorted(set(soundfile.available_formats()) - UNKNOWN_LENGTH - NOT_TRIED))
def test_every_format_is_accepted_whole_and_refused_cut(tmp_path, make_wave, kind):
    """In all formats that store their length, which libsndfile may correct; the whole file is not refused."""
    path = tmp_path / "a"
    for channels in (1,) if kind in MONO else (1, 2):
        soundfile.write(path, np.stack([make_wave(1.0)] * channels, 1), SAMPLE_RATE, format=kind)
        assert len(load_audio(path)) >= SAMPLE_RATE
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(AudioError, match="^cut short|^damaged|Format not recognised"):
            load_audio(path)


def test_paths_are_printed_on_one_line():
    """Whatever a name contains, a line of a report stays one line and shows every character; letters of any script are
    kept."""
    assert printable("a\nb\tc\rd\x1b[2J\u2028e\udcff é ДЖ 你.wav") == r"a\nb\tc\rd\x1b[2J\u2028e\udcff é ДЖ 你.wav"
    assert printable("a\u200bb\u202egpj.wav") == r"a\u200bb\u202egpj.wav"
