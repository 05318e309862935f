"""The options of run_downstream: S3PRL's are all there, as S3PRL has them."""

import argparse
import importlib

import pytest

from s3prl_ofa.cli import build_command_parser
from s3prl_ofa.superb.downstream.parser import divide
from s3prl_ofa.superb.upstream.rate_options import RateOptions


class Captured(Exception):
    pass


def options_of(parser: argparse.ArgumentParser) -> dict[str, tuple]:
    """What decides how each option is read, by the name of its result."""
    return {
        action.dest: (
            type(action),
            set(action.option_strings),
            action.default,
            action.type,
            action.choices,
            action.required,
        )
        for action in parser._actions
    }


def test_s3prls_options_are_read_as_s3prl_reads_them(monkeypatch):
    """Each has S3PRL's spellings, default, type and choices; --local_rank has one spelling more."""

    def capture(parser):
        raise Captured(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", capture)
    with pytest.raises(Captured) as found:
        importlib.import_module("s3prl.run_downstream").get_downstream_args()
    expected = options_of(found.value.args[0])
    expected["local_rank"][1].add("--local-rank")
    ours = options_of(build_command_parser("run_downstream"))
    assert {name: ours.get(name) for name in expected} == expected


def test_s3prl_is_given_its_own_options_alone():
    """What S3PRL stores with an experiment has none of ours in it."""
    given = ["-m", "train", "--lambd", "0.5", "--repeat", "auto", "--mini", "--prepared", "p", "--quiet", "--debug"]
    args, ours = divide(build_command_parser("run_downstream").parse_args(given))
    assert (
        not {"lambd", "repeat", "mini", "prepared", "cache_gb", "feature_cache", "quiet", "debug"} & vars(args).keys()
    )
    assert args.mode == "train" and args.seed == 1337
    assert RateOptions.layered(ours.rate).lambd == 0.5
    assert (ours.repeat_auto, ours.mini, ours.roots["prepared"]) == (True, True, "p")
