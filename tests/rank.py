"""``s3prl-ofa`` as one of several processes, for tests: each leaves a record of its training in ``rank<N>.pt``.

heard: file names of its training batches; weights: of the featurizer and the downstream model at the end.
"""

import importlib
import os
import sys

import torch

import s3prl_ofa.superb  # noqa: F401  readies S3PRL for today's stack
from s3prl_ofa import cli

runner = importlib.import_module("s3prl.downstream.runner")
expert = importlib.import_module("s3prl.downstream.voxceleb1.expert")

heard: list[list[str]] = []
forward, train = expert.DownstreamExpert.forward, runner.Runner.train


def listening(self, mode, features, labels, filenames, records, **kwargs):
    if mode == "train" and torch.is_grad_enabled():
        heard.append(list(filenames))
    return forward(self, mode, features, labels, filenames, records, **kwargs)


def kept(self) -> None:
    train(self)
    weights = {entry.name: runner.get_model_state(entry.model) for entry in self.all_entries if entry.trainable}
    torch.save({"heard": heard, "weights": weights}, f"rank{os.environ['RANK']}.pt")


expert.DownstreamExpert.forward, runner.Runner.train = listening, kept
sys.exit(cli.main(sys.argv[1:]))
