"""Paths that the tests read."""

import pathlib

TESTS = pathlib.Path(__file__).resolve().parent
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
REF_TINY = GOLDEN / "ref_tiny.pt"  # the tiny checkpoint of the reference: conv width 32, 2 layers of 32
CKPT = str(REF_TINY)
DEMO = ROOT / "s3prl_ofa" / "demo"
