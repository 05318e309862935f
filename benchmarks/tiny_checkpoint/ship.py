"""Prepares the trained checkpoint for release: float16 safetensors, and beside it the settings and training curves.

    python benchmarks/tiny_checkpoint/ship.py OUT s3prl_ofa/demo/tiny.safetensors

OUT is the folder that train.py wrote; the settings get the suffix .yaml, the curves .csv.
"""

import argparse
import json
import pathlib
import shutil

import torch
import yaml

from s3prl_ofa.checkpoint import read_checkpoint
from s3prl_ofa.checkpoint.conversion import rounded
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.model.storage import write_safetensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("target", type=pathlib.Path)
    args = parser.parse_args()
    checkpoint = read_checkpoint(args.out / "checkpoint.pt")
    sections = {"model": checkpoint.model_cfg, "task": checkpoint.task_cfg}
    metadata = {f"{name}_cfg": json.dumps(section) for name, section in sections.items()}
    write_safetensors(args.target, checkpoint.config, rounded(checkpoint, torch.float16), metadata)
    training = yaml.safe_load((args.out / "settings.yaml").read_text("utf-8"))
    with atomic_path(args.target.with_suffix(".yaml")) as temporary:
        temporary.write_text(yaml.safe_dump({**sections, "training": training}), "utf-8")
    with atomic_path(args.target.with_suffix(".csv")) as temporary:
        shutil.copyfile(args.out / "log.csv", temporary)


if __name__ == "__main__":
    main()
