"""The stand-in for torchaudio.sox_effects does what SoX 14.4.2 does.

``python tests/superb/compat/test_sox_effects.py`` records golden/sox.json again with Debian's sox: of every result its
length, and one sample in EVERY.
"""

import json
import pathlib
import subprocess
import tempfile

import numpy as np
import pytest
import soundfile
import torch

RECORDED = pathlib.Path(__file__).parents[2] / "golden" / "sox.json"
EVERY = 997
SPEECH = (("channels", "1"), ("rate", "16000"))
CUT = (*SPEECH, ("gain", "-3.0"), ("silence", "1", "0.1", "0.1%", "-1", "0.1", "0.1%"))
# seconds and loudness of each piece: silences shorter and longer than 0.1 s, some within the window of 20 ms of it
PIECES = ((0.3, 0), (0.5, 0.1), (0.09, 0), (0.2, 0.02), (0.11, 0), (0.05, 0.1), (0.3, 0.0008), (0.4, 0.1), (0.125, 0))
PIECES += ((0.15, 0.005), (0.6, 0.0005), (0.12, 0.3), (0.2, 0), (0.5, 0.1), (0.07, 0))
CASES = {  # sampling rate, channels, effects
    "gain": (16_000, 1, (*SPEECH, ("gain", "-3.0"))),
    "norm": (16_000, 1, (*SPEECH, ("norm",))),
    "silence": (16_000, 1, CUT),
    "silence of 8 kHz": (8_000, 1, CUT),
    "channels and rate": (44_100, 2, (*SPEECH, ("gain", "-3.0"))),
    "pad and trim": (16_000, 1, (*SPEECH, ("pad", "0.5", "0.25"), ("trim", "0.4", "1.5"))),
    "only silence": (16_000, 1, CUT),
}


def write(path: pathlib.Path, name: str) -> None:
    """The file that a case is about: noise, smoothed at high rates, and pauses."""
    rate, channels, _ = CASES[name]
    pieces = ((1.0, 0.0005),) if name == "only silence" else PIECES
    random = np.random.default_rng(7)
    waves = [loudness * random.standard_normal((round(seconds * rate), channels)) for seconds, loudness in pieces]
    wave = np.concatenate(waves)
    for _ in range(40 if rate > 16_000 else 0):  # what a low-pass filter would do to the rest depends on its steepness
        wave = (wave + np.roll(wave, 1, 0)) / 2
    soundfile.write(path, wave, rate, subtype="PCM_16")


@pytest.mark.parametrize("name", CASES)
def test_effects_are_those_of_sox(name, tmp_path):
    """The same samples are kept, and they are the same but for rounding, and for the filter of another resampler."""
    from s3prl_ofa.superb.compat import shims

    shims.apply_shims()
    import torchaudio

    write(tmp_path / "in.wav", name)
    wave, rate = torchaudio.sox_effects.apply_effects_file(str(tmp_path / "in.wav"), [*map(list, CASES[name][2])])
    expected = json.loads(RECORDED.read_text())[name]
    assert (rate, tuple(wave.shape), wave.dtype) == (16_000, (1, expected["samples"]), torch.float32)
    tolerance = 1e-6 if CASES[name][0] == 16_000 else 1e-3
    np.testing.assert_allclose(wave[0, ::EVERY].numpy(), expected["values"], rtol=0, atol=tolerance)


def test_other_effects_are_refused(tmp_path, make_wave):
    """By name, instead of being skipped; a damaged file is named too."""
    from s3prl_ofa.io.audio import AudioError
    from s3prl_ofa.superb.compat.sox_effects import apply_effects_file, apply_effects_tensor

    with pytest.raises(ValueError, match="the effect reverb is none of gain, norm"):
        apply_effects_tensor(torch.zeros(1, 10), 16_000, [["reverb"]])
    with pytest.raises(ValueError, match="must begin with"):
        apply_effects_file(tmp_path / "x.wav", [["gain", "-3.0"]])
    with pytest.raises(ValueError, match="with 1 and -1 periods, found 1 and 1"):
        apply_effects_tensor(torch.zeros(1, 10), 16_000, [["silence", "1", "0.1", "0.1%", "1", "0.1", "0.1%"]])
    with pytest.raises(AudioError, match="x.wav: no such file"):
        apply_effects_file(tmp_path / "x.wav", SPEECH)


def record(name: str, folder: pathlib.Path) -> dict:
    write(folder / "in.wav", name)
    effects = [argument for effect in CASES[name][2] for argument in effect]
    output = ["-e", "floating-point", "-b", "32", folder / "out.wav"]
    subprocess.run(["sox", "-D", folder / "in.wav", *output, *effects], check=True)
    wave, _ = soundfile.read(folder / "out.wav", dtype="float32")
    return {"samples": len(wave), "values": [round(float(value), 7) for value in wave[::EVERY]]}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        recorded = {name: record(name, pathlib.Path(temporary)) for name in CASES}
    RECORDED.write_text(json.dumps(recorded, indent=1) + "\n")
