"""The command line: wiring, exit statuses, errors in one line."""

import argparse
import contextlib
import inspect
import logging
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
import time
import types
from collections.abc import Iterator

import pytest
from paths import ROOT

from s3prl_ofa import __version__, cli, errors, output
from s3prl_ofa.arguments.parser import Parser


def run(*arguments, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "s3prl_ofa", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)


@pytest.fixture
def fake_command(monkeypatch):
    """Makes ``s3prl-ofa fake [WORD ...]`` run the given function."""

    def install(function):
        work, arguments = types.ModuleType("fake_work"), types.ModuleType("s3prl_ofa.arguments.fake")
        work.run = function
        arguments.add_arguments = lambda parser: parser.add_argument("words", nargs="*")
        for module in (work, arguments):
            monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "fake", cli.Command(work.__name__, ""))

    return install


def parsers_below(parser: Parser) -> Iterator[Parser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from parsers_below(subparser)


PARSERS = {
    parser.prog: parser
    for top in (cli.build_parser(), *map(cli.build_command_parser, cli.COMMANDS))
    for parser in parsers_below(top)
}


def test_help_is_immediate():
    """The help of every command imports nothing but Python's own modules and the arguments' ones."""
    code = (
        "import sys; before = set(sys.modules); from s3prl_ofa import cli\n"
        "for parser in (cli.build_parser(), *map(cli.build_command_parser, cli.COMMANDS)):\n"
        "    assert 'examples:' in parser.format_help()\n"
        "ours = {name.partition('.')[0] for name in set(sys.modules) - before} - sys.stdlib_module_names\n"
        "assert {name for name in ours if not name.startswith('__editable__')} == {'s3prl_ofa'}, ours"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert run("--version").stdout == f"s3prl-ofa {__version__}\n"


@pytest.mark.parametrize("prog", PARSERS)
def test_every_command_has_help_with_true_examples(prog, capsys):
    """Each example is one of this command, and is accepted as it stands."""
    with pytest.raises(SystemExit) as end:
        cli.main([*prog.split()[1:], "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith(f"usage: {prog} ")
    examples = [line.strip() for line in text.partition("\nexamples:\n")[2].splitlines()]
    assert examples and examples == list(PARSERS[prog].examples)
    for example in examples:
        assert example.startswith(prog)
        name, *words = shlex.split(example, comments=True)[1:]
        cli.build_command_parser(name).parse_args(words[: words.index(">")] if ">" in words else words)


def test_choices_are_those_of_the_work():
    """What the light modules list is what the commands can do."""
    from s3prl_ofa.arguments import extract, run_downstream
    from s3prl_ofa.extract import writers
    from s3prl_ofa.superb.upstream import rate_options

    assert tuple(writers.FORMATS) == extract.FORMATS
    assert set(run_downstream.OUTPUT_FRAMES) == set(rate_options.OUTPUT_FRAMES)
    assert run_downstream.ADAPTIVE == rate_options.ADAPTIVE
    assert run_downstream.option(rate_options.OLD_NAME) == run_downstream.OLD_OUTPUT_FRAMES


def test_upstreams_of_s3prl():
    """Those that the help lists are those that S3PRL has, ours aside."""
    from s3prl import hub

    from s3prl_ofa.arguments.run_downstream import s3prl_upstreams

    names = {name for name, value in vars(hub).items() if inspect.isfunction(value) and name[0] != "_"}
    other = {"options", "load_and_convert_fairseq_ckpt"}
    assert {name for name in names - other if not name.startswith("ofa_wav2vec2")} == set(s3prl_upstreams())


def test_without_a_command_is_help(capsys):
    """A bare s3prl-ofa prints the help, which names every command, and succeeds."""
    assert cli.main([]) == 0
    text = capsys.readouterr().out
    assert text == cli.build_parser().format_help()
    assert all(f"\n  {name} " in text for name in cli.COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        ("extrat", "; did you mean extract? "),
        ("run-downstream -m train", "; did you mean run_downstream? "),
        ("extract a.wav --ckpt c --out o --format np", "; did you mean npy? "),
        ("extract a.wav --ckpt c --out o --frame-perod-ms 40", "; did you mean --frame-period-ms? "),
        ("extract a.wav --chkpt c --out o", "; did you mean --ckpt? "),
        ("run_downstream -m train --lamda 0.5", "; did you mean --lambd? "),
        ("prepare bukcet", "; did you mean bucket? "),
        ("prepare bucket --librispech L --out o", "; did you mean --librispeech? "),
        ("guidance ctm a.ctm --manifest m --out o --silense-labels x", "; did you mean --silence-labels? "),
        ("pretrain --nprocs 2 data=m", "; did you mean --nproc? "),
        ("--versoin", "; did you mean --version? "),
        ("waltz", "(choose from "),
        ("info tiny --waltz", "unrecognized arguments: --waltz (see "),
    ],
)
def test_typos_get_a_suggestion(arguments, suggestion, capsys):
    """The nearest one is suggested for a mistyped command, option or value of an option."""
    assert cli.main(arguments.split()) == 2
    said = capsys.readouterr().err
    assert suggestion in said and said.count("\n") == 1
    assert ("did you mean" in said) == ("did you mean" in suggestion)


def test_options_stand_between_arguments(monkeypatch):
    """``extract a.wav --lambd 1 b.wav``, where argparse by itself would not accept b.wav."""
    args = cli.build_command_parser("extract").parse_args(["a.wav", "--ckpt", "c", "--out", "o", "b.wav"])
    assert args.audio == ["a.wav", "b.wav"]


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
    status, said = cli.main(arguments), capsys.readouterr().err
    assert status == 2
    assert "error: " in said and said.count("\n") == 1, said


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (errors.UsageError("found this,\nexpected that"), 2, "found this, expected that"),
        (errors.CheckpointError("x.pt: no"), 2, "x.pt: no"),
        (errors.UsageError("\u202egpj.a, " + errors.shown("a\u200bb")), 2, r"\u202egpj.a, 'a\u200bb'"),
        (ValueError("a bad value"), 1, "a bad value"),
        (OSError(2, "No such file or directory"), 1, "FileNotFoundError: [Errno 2] No such file or directory"),
        (OSError(17, "File exists", "re\nport"), 1, "re port: File exists"),
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


@pytest.mark.parametrize(
    ("words", "level"),
    [
        ("fake", logging.WARNING),
        ("-v fake", logging.INFO),
        ("fake --verbose", logging.INFO),
        ("-v fake -v", logging.DEBUG),
        ("--quiet fake", logging.ERROR),
        ("fake -q", logging.ERROR),
    ],
)
def test_the_log_is_as_verbose_as_wanted(fake_command, monkeypatch, words, level):
    """--quiet and --verbose, before the command or after it."""
    levels = []
    monkeypatch.setattr(os, "environ", {**os.environ})
    monkeypatch.setattr(logging, "basicConfig", lambda **options: levels.append(options["level"]))
    fake_command(lambda args: levels.append(output.is_quiet()))
    assert cli.main(words.split()) == 0
    assert levels == [level, level == logging.ERROR]
    cli.main(["fake"])
    assert levels[-1] is False


@pytest.mark.slow
def test_quiet_leaves_errors_alone(golden_checkpoint, audio_folder, tmp_path):
    """With --quiet a command is silent, its exit status and its errors are the same."""
    (audio_folder / "bad.wav").write_bytes(b"bad")
    command = ["extract", audio_folder, "--ckpt", golden_checkpoint, "--out"]
    loud, quiet = run(*command, tmp_path / "1"), run(*command, tmp_path / "2", "--quiet")
    assert loud.returncode == quiet.returncode == 1 and loud.stdout == quiet.stdout == ""
    summary, errors = loud.stderr.split("\n", 1)
    assert summary.startswith("4 of 5 files extracted to")
    assert errors.replace(str(tmp_path / "1"), str(tmp_path / "2")) == quiet.stderr and "bad.wav" in errors


@pytest.mark.slow
def test_progress_on_a_terminal(golden_checkpoint, audio_folder, tmp_path):
    """A terminal shows hours of audio and how many times faster than real time they are done; --quiet nothing."""
    seen = {}
    for option in ("--verbose", "--quiet"):
        leader, follower = pty.openpty()
        termios.tcsetwinsize(follower, (24, 100))
        command = ["extract", audio_folder, "--ckpt", golden_checkpoint, "--out", tmp_path / option, option]
        with open(leader, "rb", buffering=0) as terminal:
            process = subprocess.Popen(
                [sys.executable, "-m", "s3prl_ofa", *map(str, command)], stderr=follower, cwd=ROOT
            )
            os.close(follower)
            seen[option] = b""
            with contextlib.suppress(OSError):  # the end of a terminal
                while chunk := terminal.read(4096):
                    seen[option] += chunk
            assert process.wait() == 0
    assert re.search(rb"extract: 100%.*00:03/00:03 of audio .*, \d+ x real time\]", seen["--verbose"])
    assert seen["--quiet"] == b""


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("s3prl-ofa ext", "extract"),
        ("s3prl-ofa extract --frame", "--frame-period-ms"),
        ("s3prl-ofa extract --format safe", "safetensors"),
        ("s3prl-ofa prepare vox", "voxceleb1"),
        ("s3prl-ofa prepare voxceleb1 --se", "--seed"),
        ("s3prl-ofa info chec", "checkpoint.pt"),
    ],
)
def test_bash_completes(completion_script, line, completed, tmp_path):
    """bash, with the script that the command prints, completes commands, options, choices and files."""
    (tmp_path / "checkpoint.pt").touch()
    words = line.split()
    code = f"""source {completion_script}
COMP_WORDS=({line}) COMP_CWORD={len(words) - 1} COMP_LINE='{line}' COMP_POINT={len(line)}
function=$(complete -p s3prl-ofa | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
$function s3prl-ofa {words[-1]} {words[-2]}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.split() == [completed], done.stderr


@pytest.fixture(scope="module")
def completion_script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "s3prl-ofa"
    path.write_text(run("completion", "bash").stdout)
    return path


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion_scripts(shell, capsys):
    """Each shell has a script that names the commands."""
    assert cli.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert all(name in script for name in (*cli.COMMANDS, "voxceleb1", "frame-period-ms"))


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
