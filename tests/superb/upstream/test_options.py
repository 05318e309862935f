"""The upstream's options: keyword arguments, S3PRL's -g and the command line."""

import numpy as np
import pytest
import torch
import yaml

from s3prl_ofa.cli import build_command_parser
from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.downstream.parser import divide
from s3prl_ofa.superb.upstream.rate_options import RateOptions, read_model_config


def test_defaults_are_no_compression_for_unmodified_s3prl():
    """Without options the rate is lambd 0 and frames are upsampled, the default for plain S3PRL and torch.hub."""
    options = RateOptions()
    assert (options.lambd, options.frame_period_ms, options.output_frames, options.repeat) == (
        None,
        None,
        "upsampled",
        1,
    )


@pytest.mark.parametrize(
    "text", ["{lambd: 0.5, output_frames: native, repeat: 2}", "lambd: 0.5\noutput_frames: native\nrepeat: 2\n"]
)
def test_model_config_inline_or_file(text, tmp_path):
    """-g takes inline YAML and a YAML file, to the same effect."""
    (tmp_path / "rate.yaml").write_text(text)
    expected = RateOptions(lambd=0.5, output_frames="native", repeat=2)
    assert RateOptions.layered(read_model_config(text)) == expected
    assert RateOptions.layered(read_model_config(tmp_path / "rate.yaml")) == expected
    assert RateOptions.layered(read_model_config({"lambd": 0.5, "output_frames": "native", "repeat": 2})) == expected


@pytest.mark.parametrize("half", [np.float32(0.5), np.float64(0.5), np.array(0.5), torch.tensor(0.5), "5e-1"])
def test_numbers_of_numpy_torch_and_yaml(half):
    """A scalar of numpy or torch is a number, and so is 5e-1, which YAML 1.1 takes for text; stored as Python's."""
    options = RateOptions.layered({"lambd": half, "output_frames": "native", "repeat": np.int64(2)})
    assert options == RateOptions(0.5, output_frames="native", repeat=2)
    assert type(options.lambd) is float and type(options.repeat) is int
    assert RateOptions.layered(read_model_config(options.to_yaml())) == options
    assert RateOptions(frame_period_ms=torch.tensor(40)).frame_period_ms == 40
    assert RateOptions.layered(read_model_config("{lambd: 1e-1}")).lambd == 0.1


def test_output_frames_by_their_old_name():
    """``frames``, as earlier versions called it, still counts in each layer; both names must say the same."""
    old = read_model_config("{frames: native, lambd: 0.5}")
    assert RateOptions.layered(old) == RateOptions(lambd=0.5, output_frames="native")
    assert RateOptions.layered(old, {"output_frames": "upsampled"}).output_frames == "upsampled"
    assert RateOptions.layered({"output_frames": "upsampled"}, old).output_frames == "native"
    assert RateOptions.layered({**old, "output_frames": "native"}).output_frames == "native"
    assert RateOptions.layered({**old, "output_frames": None}).output_frames == "native"
    with pytest.raises(UsageError, match="^output_frames upsampled contradicts frames native, its old name"):
        RateOptions.layered({**old, "output_frames": "upsampled"})


def test_the_old_option_of_output_frames():
    """``--frames`` is taken as ``--output-frames``, and no longer listed."""
    parser = build_command_parser("run_downstream")
    for option in ("--frames", "--output-frames"):
        _, ours = divide(parser.parse_args(["-m", "train", option, "upsampled"]))
        assert RateOptions.layered({"output_frames": "native"}, ours.rate).output_frames == "upsampled"
    with pytest.raises(UsageError, match="output_frames native contradicts frames upsampled"):
        divide(parser.parse_args(["-m", "train", "--output-frames", "native", "--frames", "upsampled"]))
    assert "--output-frames" in parser.format_help() and " --frames" not in parser.format_help()


@pytest.mark.parametrize("empty", [None, "", "{}", {}])
def test_no_model_config(empty):
    """S3PRL passes None without -g; an empty one has no options either."""
    assert RateOptions.layered(read_model_config(empty)) == RateOptions()


def test_later_layers_win_and_a_rate_replaces_a_rate():
    """Keyword arguments win over model_config, and a period given there replaces a lambd given here."""
    stored = {"lambd": 0.5, "output_frames": "native", "repeat": 2}
    assert RateOptions.layered(stored, {"lambd": 0.7, "repeat": None}) == RateOptions(0.7, None, "native", 2)
    assert RateOptions.layered(stored, {"frame_period_ms": 40.0}) == RateOptions(None, 40.0, "native", 2)


@pytest.mark.parametrize(
    "options",
    [
        RateOptions(),
        RateOptions(lambd=0.5, output_frames="native", repeat=3),
        RateOptions(frame_period_ms=33.3),
        RateOptions(output_frames="native", pool=3),
        RateOptions(lambd=0.5, dtype="int8"),
        RateOptions(0),
    ],
)
def test_inline_yaml_goes_there_and_back(options):
    """What is stored with an experiment reads back the same; it holds no =, at which S3PRL's -o would split it."""
    text = options.to_yaml()
    assert "=" not in text and "\n" not in text
    assert text.startswith("{") and isinstance(yaml.safe_load(text), dict)
    assert RateOptions.layered(read_model_config(text)) == options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lambd": 2.0}, ["lambd", "[0, 2)", "2.0"]),
        ({"lambd": -0.1}, ["lambd", "[0, 2)"]),
        ({"lambd": float("nan")}, ["lambd", "nan"]),
        ({"lambd": True}, ["lambd", "True"]),
        ({"lambd": "fast"}, ["lambd", "fast"]),
        ({"lambd": "nan"}, ["lambd", "nan"]),
        ({"lambd": np.bool_(True)}, ["lambd", "True"]),
        ({"lambd": torch.tensor([0.5, 0.6])}, ["lambd", "0.6"]),
        ({"frame_period_ms": True}, ["frame_period_ms", "True"]),
        ({"output_frames": "native", "repeat": np.bool_(True)}, ["repeat", "True"]),
        ({"frame_period_ms": 19.9}, ["frame_period_ms", "20", "19.9"]),
        ({"frame_period_ms": float("inf")}, ["frame_period_ms", "inf"]),
        ({"lambd": 0.5, "frame_period_ms": 40.0}, ["not more than one"]),
        ({"lambd": 0.0, "pool": 2}, ["pool", "not more than one"]),
        ({"pool": 1}, ["pool", "2", "1"]),
        ({"pool": 2.5}, ["pool", "2.5"]),
        ({"pool": True}, ["pool", "True"]),
        ({"dtype": "int4"}, ["dtype", "float32", "int8", "auto", "int4"]),
        ({"output_frames": "both"}, ["output_frames", "upsampled", "native", "both"]),
        ({"output_frames": "native", "repeat": 0}, ["repeat", "0"]),
        ({"output_frames": "native", "repeat": 1.5}, ["repeat", "1.5"]),
        ({"output_frames": "upsampled", "repeat": 2}, ["repeat", "native", "upsampled"]),
        ({"lamda": 0.5}, ["lamda", "lambd", "frame_period_ms", "output_frames", "repeat"]),
    ],
)
def test_bad_options_name_the_option_and_its_choices(options, words):
    """A wrong value or key is one sentence with what was found and what was expected."""
    with pytest.raises(UsageError) as error:
        RateOptions.layered(options)
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("text", ["0.5", "no/such/file.yaml", "[1, 2]", "{lambd: 0.5"])
def test_bad_model_config(text):
    """-g that is neither a file nor inline YAML says so, with an example."""
    with pytest.raises(UsageError, match="model_config"):
        read_model_config(text)


def test_the_log_line_names_all_options():
    """The options in the words of the log."""
    assert str(RateOptions()) == "lambd 0, upsampled frames"
    assert str(RateOptions(lambd=0.5, dtype="int8")) == "lambd 0.5, int8, upsampled frames"
    assert str(RateOptions(frame_period_ms=40.0, output_frames="native", repeat=2)) == (
        "frame period 40 ms, native frames, each 2 times"
    )
