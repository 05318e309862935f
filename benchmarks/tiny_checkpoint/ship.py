"""Prepares a trained checkpoint for release: float16 safetensors, without folder names of the training machine.

    python benchmarks/tiny_checkpoint/ship.py OUT s3prl_ofa/demo/tiny.safetensors

OUT is the folder of the last run of `s3prl-ofa pretrain`. The run's configuration is written beside it as .yaml.
"""

import argparse
import json
import pathlib

import torch
import yaml

from s3prl_ofa.checkpoint import read_checkpoint
from s3prl_ofa.checkpoint.conversion import rounded
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.model.storage import write_safetensors

# the sections of fairseq's configuration that concern this training
SECTIONS = (
    "common",
    "checkpoint",
    "task",
    "dataset",
    "criterion",
    "optimization",
    "optimizer",
    "lr_scheduler",
    "model",
)
FOLDERS = {
    "task": ("data", "alpha_root", "boundaries_root"),
    "checkpoint": ("save_dir", "finetune_from_model"),
    "common": ("tensorboard_logdir", "plasma_path"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    args = parser.parse_args()
    checkpoint = read_checkpoint(args.out / "checkpoints" / "checkpoint_last.pt")
    metadata = {
        "model_cfg": json.dumps(checkpoint.model_cfg),
        "task_cfg": json.dumps(without_folders(checkpoint.task_cfg, "task")),
    }
    write_safetensors(args.target, checkpoint.config, rounded(checkpoint, torch.float16), metadata)
    settings = yaml.safe_load((args.out / "config" / "config.yaml").read_text("utf-8"))
    kept = {section: without_folders(settings[section], section) for section in SECTIONS}
    with atomic_path(args.target.with_suffix(".yaml")) as temporary:
        temporary.write_text(yaml.safe_dump(kept), "utf-8")


def without_folders(values: dict, section: str) -> dict:
    return {key: "" if key in FOLDERS.get(section, ()) and value else value for key, value in values.items()}


if __name__ == "__main__":
    main()
