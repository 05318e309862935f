"""Compares the speed and memory of pretraining with plain fairseq's wav2vec 2.0 of the same size.

    python -m benchmarks.pretrain --config ofa_tiny --threads 2

Every contender is fairseq's trainer with the optimizer of the packaged configuration and a model with the same initial
weights. They take turns at an update on the same batch of random waves. Memory is the peak during three updates: on a
CPU that of a separate process, read from Linux's /proc; on a GPU what torch's allocator adds to that of the other
contenders.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import subprocess
import sys
from collections.abc import Callable

import torch
from fairseq.criterions.wav2vec_criterion import Wav2vecCriterion
from fairseq.dataclass.initialize import add_defaults, hydra_init
from fairseq.models.wav2vec.wav2vec2 import Wav2Vec2Config, Wav2Vec2Model
from fairseq.trainer import Trainer
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import s3prl_ofa.pretrain  # noqa: F401, registers
from benchmarks.rows import RESULTS, Contender, compare, environment, peak_mib, write
from s3prl_ofa.arguments.pretrain import CONFIGS
from s3prl_ofa.guidance.layout import alpha_of, num_frames
from s3prl_ofa.model import SAMPLE_RATE
from s3prl_ofa.pretrain.model import OFAPretrainingModel

PACKAGES = ("s3prl-ofa", "torch", "fairseq-fixed")
PLAIN = "fairseq wav2vec2"
CONTENDERS = {PLAIN: None, "ours, lambd 0": 0.0, "ours, mean lambd 0.5": "uniform", "ours, lambd 1": 1.0}
SEGMENT = 4  # frames, 80 ms
MEMORY_UPDATES = 3


def settings(config: str, device: str):
    """fairseq's complete configuration."""
    hydra_init(config)
    cpu = [f"common.cpu={str(device == 'cpu').lower()}", "common.fp16=false"]
    with initialize_config_dir(str(CONFIGS), version_base="1.1"):
        cfg = compose(config, overrides=["task.data=.", "distributed_training.distributed_world_size=1", *cpu])
    add_defaults(cfg)
    return OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, enum_to_str=True))


def trainer(cfg, name: str) -> Trainer:
    """One contender, ready to train, with a trained model's mean alpha, 2/9, so that frame periods are realistic."""
    from fairseq import tasks

    task = tasks.setup_task(cfg.task)
    torch.manual_seed(0)
    if name == PLAIN:
        known = Wav2Vec2Config.__dataclass_fields__
        plain = {key: value for key, value in cfg.model.items() if key in known}
        plain["latent_temp"] = tuple(plain["latent_temp"])
        model = Wav2Vec2Model(Wav2Vec2Config(**plain))
        criterion = Wav2vecCriterion(task, infonce=True, loss_weights=list(cfg.criterion.loss_weights)[:2])
    else:
        model: OFAPretrainingModel = task.build_model(cfg.model)
        with torch.no_grad():
            model.cif_subsampler.alpha_fn.layer[2].weight.mul_(0.1)
            model.cif_subsampler.alpha_fn.layer[2].bias.fill_(-1.2528)
        rate = CONTENDERS[name]
        model.overwrite_lambd = None if rate == "uniform" else rate
        criterion = task.build_criterion(cfg.criterion)
    return Trainer(cfg, task, model, criterion)


def batch(crops: int, seconds: float, guided: bool) -> dict:
    """A batch of random waves, with a boundary every 80 ms."""
    samples = int(seconds * SAMPLE_RATE)
    generator = torch.Generator().manual_seed(0)
    net_input = {"source": 0.1 * torch.randn(crops, samples, generator=generator)}
    if guided:
        frames = num_frames(samples)
        boundaries = torch.arange(SEGMENT, frames + 1, SEGMENT)
        net_input["guidance"] = {
            "guided": torch.ones(crops, dtype=torch.bool),
            "first_part": torch.ones(crops),
            "boundaries": boundaries.expand(crops, -1).clone(),
            "pseudo_alpha": alpha_of(boundaries, frames).expand(crops, -1).clone(),
        }
    return {"id": torch.arange(crops), "net_input": net_input}


def update(contender: Trainer, name: str, crops: int, seconds: float) -> None:
    contender.train_step([batch(crops, seconds, name != PLAIN)])


def peak_of(args: argparse.Namespace, name: str) -> int:
    """Peak memory in MiB of a process that does a few updates with one contender."""
    command = [sys.executable, "-m", "benchmarks.pretrain", "--memory-of", name]
    for option in ("config", "device", "crops", "seconds", "threads"):
        command += [f"--{option}", str(getattr(args, option))]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def print_peak(args: argparse.Namespace) -> None:
    contender = trainer(settings(args.config, args.device), args.memory_of)
    for _ in range(MEMORY_UPDATES):
        update(contender, args.memory_of, args.crops, args.seconds)
    print(peak_mib(torch.device(args.device)))


def added_peak(run: Callable[[], object], before: int, device: torch.device) -> int:
    """Peak memory in MiB of a few updates on a GPU, without what was allocated before the contender."""
    torch.cuda.reset_peak_memory_stats(device)
    for _ in range(MEMORY_UPDATES):
        run()
    return peak_mib(device) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="ofa_tiny", help="a packaged configuration")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--crops", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds per crop")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "pretrain.csv")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print_peak(args)
        return
    cfg, device = settings(args.config, args.device), torch.device(args.device)
    on_gpu = device.type == "cuda"
    if on_gpu:  # the workspaces of cuBLAS, of this thread and of autograd's, belong to no contender
        torch.ones(1, 1, device=device, requires_grad=True).mm(torch.ones(1, 1, device=device)).sum().backward()
    contenders, peaks = [], {}
    for name in CONTENDERS:
        before = round(torch.cuda.memory_allocated(device) / 2**20) if on_gpu else 0
        run = functools.partial(update, trainer(cfg, name), name, args.crops, args.seconds)
        peaks[name] = added_peak(run, before, device) if on_gpu else peak_of(args, name)
        contenders.append(Contender("pretrain", name, run, args.crops * args.seconds))
    rows = compare(contenders, args.rounds, device, environment(device, PACKAGES))
    write([dataclasses.replace(row, peak_mib=peaks[row.contender], note=args.config) for row in rows], args.out)


if __name__ == "__main__":
    main()
