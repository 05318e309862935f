"""The command line: wiring, exit statuses, errors in one line."""

import json
import logging
import os
import signal
import subprocess
import sys
import time

import pytest
from paths import ROOT

from s3prl_ofa import __version__, cli, errors


def run(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "s3prl_ofa", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


@pytest.fixture
def fake_command(monkeypatch):
    """Makes ``s3prl-ofa fake`` run the given function."""

    def install(function):
        module = type(sys)("fake_command_module")
        module.run = function
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "fake", cli.Command(module.__name__, "", add_arguments=None))

    return install


def test_help_and_version_are_quick():
    """--help names every command and imports nothing heavy; --version says the version."""
    code = (
        "import sys; from s3prl_ofa import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 's3prl', 'torchaudio', 'fairseq', 'soundfile'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for name in ("extract", "info", "run_downstream", "link", "unlink", "prepare", "convert"):
        assert f"\n  {name} " in done.stdout
    assert run("--version").stdout == f"s3prl-ofa {__version__}\n"


def test_without_a_command_is_help(capsys):
    """A bare s3prl-ofa prints the help and succeeds."""
    assert cli.main([]) == 0
    assert capsys.readouterr().out == cli.build_parser().format_help()


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["extrat"], "; did you mean extract? "),
        (["run-downstream", "-m", "train"], "; did you mean run_downstream? "),
        (["extract", "a.wav", "--ckpt", "c", "--out", "o", "--format", "np"], "; did you mean npy? "),
        (["waltz"], "(choose from "),
    ],
)
def test_typos_get_a_suggestion(arguments, suggestion, capsys):
    """The nearest choice is suggested for a mistyped command or value of an option."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    said = capsys.readouterr().err
    assert end.value.code == 2 and suggestion in said and said.count("\n") == 1
    assert ("did you mean" in said) == ("did you mean" in suggestion)


@pytest.mark.parametrize("command", ["extract", "info", "link", "unlink", "prepare", "convert", "demo"])
def test_every_command_has_help(command, capsys):
    """Every command is wired to its module."""
    with pytest.raises(SystemExit) as end:
        cli.main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: s3prl-ofa {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"],
        ["extract"],
        ["extract", "--out"],
        ["info"],
        ["info", "missing.pt"],
        ["convert", "missing.pt", "to.safetensors"],
        ["link", "no-checkout"],
        ["unlink", "no-checkout"],
        ["prepare", "nothing"],
        ["run_downstream", "-m", "train", "--lambd", "7"],
    ],
)
def test_bad_use_is_one_line_and_2(arguments, tmp_path, monkeypatch, capsys):
    """Bad use ends with status 2 and one line on stderr, without a traceback."""
    monkeypatch.chdir(tmp_path)
    try:
        status = cli.main(arguments)
    except SystemExit as end:
        status = end.code
    said = capsys.readouterr().err
    assert status == 2
    assert "error: " in said and said.count("\n") == 1, said


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (errors.UsageError("found this,\nexpected that"), 2, "found this, expected that"),
        (errors.CheckpointError("x.pt: no"), 2, "x.pt: no"),
        (ValueError("a bad value"), 1, "a bad value"),
        (OSError(2, "No such file or directory"), 1, "FileNotFoundError: [Errno 2] No such file or directory"),
        (RuntimeError(), 1, "RuntimeError: no message"),
        (KeyboardInterrupt(), 130, None),
    ],
)
def test_errors_become_a_line_and_a_status(fake_command, capsys, error, status, line):
    """2 for what the user can fix, 1 for a failed run, 130 for Ctrl-C; with --debug the traceback is kept."""

    def fail(arguments):
        raise error

    fake_command(fail)
    assert cli.main(["fake"]) == status
    expected = "s3prl-ofa fake: interrupted\n" if line is None else f"s3prl-ofa fake: error: {line}\n"
    assert capsys.readouterr().err == expected
    for arguments in (["--debug", "fake"], ["fake", "--debug"]):
        if line is not None:
            with pytest.raises(type(error)):
                cli.main(arguments)


def test_own_arguments_are_passed_on(fake_command):
    """A command that parses its arguments itself gets all but --debug, and its status is returned."""
    seen = []
    fake_command(lambda arguments: seen.append(arguments) or 5)
    assert cli.main(["fake", "-m", "train", "-v", "x", "--debug"]) == 5
    assert seen == [["-m", "train", "-v", "x"]]


def test_verbose_sets_the_level(fake_command, monkeypatch):
    """-v and -vv set the level of the log."""
    levels = []
    monkeypatch.setattr(logging, "basicConfig", lambda **options: levels.append(options["level"]))
    fake_command(lambda arguments: 0)
    for options in ([], ["-v"], ["-vv"]):
        assert cli.main([*options, "fake"]) == 0
    assert levels == [logging.WARNING, logging.INFO, logging.DEBUG]


def test_interrupt_of_a_process(golden_checkpoint, tmp_path, make_wave):
    """Ctrl-C in the middle of real work: one line and 130."""
    import soundfile

    # Far more work than can be done before the signal comes, however busy the machine.
    soundfile.write(tmp_path / "0.wav", make_wave(60.0, 0), 16_000)
    for index in range(1, 200):
        os.link(tmp_path / "0.wav", tmp_path / f"{index}.wav")
    out = tmp_path / "out"
    command = ["extract", tmp_path, "--ckpt", golden_checkpoint, "--out", out, "--batch-seconds", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "s3prl_ofa", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        # A shell's background job, as these tests may be, ignores the signal, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    index = out / "index.jsonl"
    while process.poll() is None and not (index.exists() and index.stat().st_size):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate()
    assert process.returncode == 130 and said == "s3prl-ofa extract: interrupted\n"


def test_reader_goes_away(golden_checkpoint):
    """``s3prl-ofa info ... | head -1`` prints no complaint."""
    command = f"{sys.executable} -m s3prl_ofa info {golden_checkpoint} | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("checkpoint ") and done.stderr == ""


def test_info(golden_checkpoint, golden_model, capsys):
    """The config, the mean alpha and the table: 11 rates, each period what extract gives on the bundled audio."""
    from s3prl_ofa.info import BUNDLED_AUDIO
    from s3prl_ofa.io.audio import find_audio, load_audio

    assert cli.main(["info", str(golden_checkpoint), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["format"] == "fairseq" and result["config"]["dim"] == 32
    assert result["parameters"] == sum(parameter.numel() for parameter in golden_model.parameters())
    assert [row["lambd"] for row in result["table"]] == [step / 10 for step in range(11)]
    waves = [load_audio(path) for path in find_audio(BUNDLED_AUDIO)]
    for row in result["table"]:
        periods = golden_model.extract(waves, lambd=row["lambd"]).frame_period_ms
        assert row["frame_period_ms"] == pytest.approx(float(periods.mean()))
        formula = 20 / (1 - row["lambd"] * (1 - result["mean_alpha"]))
        assert row["frame_period_ms"] == pytest.approx(formula, rel=0.03)
    costs = [row["macs_per_second"] for row in result["table"]]
    assert costs[1:] == sorted(costs[1:], reverse=True)
    assert cli.main(["info", str(golden_checkpoint)]) == 0
    text = capsys.readouterr().out
    assert f"mean alpha   {result['mean_alpha']:.3f}" in text and "\n  1.0  " in text


def test_info_of_given_audio(golden_checkpoint, audio_folder, capsys):
    """--audio measures on other files; one that cannot be read, or has another format, is bad use."""
    assert cli.main(["info", str(golden_checkpoint), "--audio", str(audio_folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["utterances"] == 4
    (audio_folder / "bad.wav").write_bytes(b"bad")
    assert cli.main(["info", str(golden_checkpoint), "--audio", str(audio_folder)]) == 2
    assert "bad.wav" in capsys.readouterr().err
    (audio_folder / "bad.wav").rename(audio_folder / "bad.m4a")
    assert cli.main(["info", str(golden_checkpoint), "--audio", str(audio_folder)]) == 2
    assert "ffmpeg -i bad.m4a" in capsys.readouterr().err


def test_info_of_too_short_audio(golden_checkpoint, audio_folder, make_wave, capsys):
    """A file that is too short for a frame is named by its path."""
    import soundfile

    soundfile.write(audio_folder / "short.wav", make_wave(0.02), 16_000)
    assert cli.main(["info", str(golden_checkpoint), "--audio", str(audio_folder)]) == 2
    said = capsys.readouterr().err
    assert f"{audio_folder / 'short.wav'}: too short: 320 samples" in said and "400" in said


def test_info_without_compressor(tmp_path, capsys):
    """A plain wav2vec 2.0 has one line, at 20 ms."""
    from s3prl_ofa.model import ModelConfig, OFAWav2Vec2

    OFAWav2Vec2(ModelConfig(dim=32, ffn_dim=64, heads=4, layers=1)).save(tmp_path / "plain.safetensors")
    assert cli.main(["info", str(tmp_path / "plain.safetensors"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["mean_alpha"] is None and [row["lambd"] for row in result["table"]] == [0.0]


@pytest.mark.parametrize("frames", [249, 100])
def test_macs(frames):
    """The computed cost is what PyTorch counts for plain layers of the same shape."""
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    from s3prl_ofa.model import ModelConfig
    from s3prl_ofa.model.cost import macs

    config = ModelConfig(dim=96, ffn_dim=160, heads=4, layers=3, compressor="cif")
    samples, width = 80_000, config.conv_dim
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        hidden, channels = torch.empty(1, 1, samples), 1
        for out_channels, kernel, stride in config.conv_layers:
            hidden = nn.Conv1d(channels, out_channels, kernel, stride)(hidden)
            channels = out_channels
        assert hidden.shape[2] == 249 == config.num_frames(samples)
        if frames < 249:
            nn.Conv1d(width, width, 5, padding=2)(hidden)
            nn.Linear(width, 1)(hidden.mT)
        rows = nn.Linear(width, config.dim)(torch.empty(frames, width))
        padding = config.pos_conv_kernel // 2
        padded = nn.functional.pad(rows.mT, (padding, padding - 1))
        nn.Conv1d(config.dim, config.dim, config.pos_conv_kernel, groups=config.pos_conv_groups)(padded[None])
        for _ in range(config.layers):
            for _ in range(4):
                rows = nn.Linear(config.dim, config.dim)(rows)
            rows = (rows @ rows.mT) @ rows
            nn.Linear(config.ffn_dim, config.dim)(nn.Linear(config.dim, config.ffn_dim)(rows))
    assert macs(config, samples, frames) == counter.get_total_flops() // 2
