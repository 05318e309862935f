"""``lambd: adaptive``: its options."""

import pytest

from s3prl_ofa.errors import UsageError
from s3prl_ofa.superb.upstream.rate_options import RateOptions, read_model_config


def test_options():
    """Defaults, YAML and back, and that another rate leaves nothing of an adaptive one behind."""
    options = RateOptions(lambd="adaptive", rate_weight="1e-1", output_frames="native")
    assert (options.lambd_start, options.rate_weight) == (0.5, 0.1)
    assert RateOptions.layered(read_model_config(options.to_yaml())) == options
    assert str(options) == "adaptive lambd (start 0.5, rate weight 0.1), native frames"
    stored = read_model_config(options.to_yaml())
    assert RateOptions.layered(stored, {"lambd": 0.3}) == RateOptions(lambd=0.3, output_frames="native")
    assert RateOptions.layered(stored, {"lambd": "adaptive"}, {"rate_weight": 0.2}).rate_weight == 0.2
    assert RateOptions(lambd="adaptive", lambd_max=0.4).lambd_start == 0.4
    assert str(RateOptions(lambd="adaptive", lambd_max=0.8)).startswith("adaptive lambd (start 0.5, at most 0.8, ")
    assert (
        RateOptions().lambd_max is None
        and RateOptions().lambd_start is None
        and "lambd_start" not in RateOptions().to_yaml()
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rate_weight": 0.1}, ["rate_weight", "adaptive"]),
        ({"lambd": 0.5, "rate_weight": 0.1}, ["rate_weight", "adaptive"]),
        ({"pool": 2, "lambd_start": 0.1}, ["lambd_start", "adaptive"]),
        ({"lambd": "adaptive", "rate_weight": -0.1}, ["rate_weight", "at least 0", "-0.1"]),
        ({"lambd": "adaptive", "rate_weight": float("inf")}, ["rate_weight", "inf"]),
        ({"lambd": "adaptive", "rate_weight": True}, ["rate_weight", "True"]),
        ({"lambd": "adaptive", "lambd_start": 1.1}, ["lambd_start", "[0, 1]", "1.1"]),
        ({"lambd": "adaptive", "lambd_start": -0.1}, ["lambd_start", "[0, 1]", "-0.1"]),
        ({"lambd": "adaptive", "lambd_start": float("nan")}, ["lambd_start", "nan"]),
        ({"lambd": 0.5, "lambd_max": 0.9}, ["lambd_max", "adaptive"]),
        ({"lambd": "adaptive", "lambd_max": 0}, ["lambd_max", "(0, 1]", "0"]),
        ({"lambd": "adaptive", "lambd_max": 1.2}, ["lambd_max", "(0, 1]", "1.2"]),
        ({"lambd": "adaptive", "lambd_max": 0.5, "lambd_start": 0.6}, ["lambd_start", "lambd_max", "0.5", "0.6"]),
        ({"lambd": "adaptive", "frame_period_ms": 40}, ["not more than one"]),
        ({"lambd": "adapted"}, ["lambd", "adaptive", "adapted"]),
    ],
)
def test_bad_options(options, words):
    """One sentence with what was found and what was expected."""
    with pytest.raises(UsageError) as error:
        RateOptions.layered(options)
    assert all(word in str(error.value) for word in words), error.value
