"""``s3prl-ofa pretrain``: fairseq's trainer with this plugin and packaged configurations, in one process or many."""

import argparse
import contextlib
import difflib
import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
import yaml

from s3prl_ofa.arguments.parser import worker_message
from s3prl_ofa.arguments.pretrain import CONFIGS, DEFAULT_CONFIG, PACKAGED, SHORT
from s3prl_ofa.checkpoint import read_checkpoint
from s3prl_ofa.checkpoint.bounded_yaml import read_yaml
from s3prl_ofa.checkpoint.contents import split_weight_norm
from s3prl_ofa.checkpoint.fairseq_format import CTC_NAMES, drop_needless_projection, read_config, write_state
from s3prl_ofa.checkpoint.reading import naming
from s3prl_ofa.checkpoint.safe_loading import explain_refusal, no_code_from_files, patched_attributes
from s3prl_ofa.checkpoint.torch_file import read_torch_file
from s3prl_ofa.errors import CheckpointError, UsageError, shown
from s3prl_ofa.io.files import atomic_path, writing
from s3prl_ofa.io.locks import is_locked
from s3prl_ofa.io.output_folder import LOCK, in_use, locked_folder
from s3prl_ofa.jobs.launched import process_count
from s3prl_ofa.model.names import check_finite
from s3prl_ofa.output import is_quiet, tell
from s3prl_ofa.pretrain.named_code import NO_USER_DIR, no_code_from_names
from s3prl_ofa.signals import wait_for

CHECKED_SECTIONS = ("task.", "model.", "criterion.", "optimizer.", "lr_scheduler.")
NEEDED = {"task": "audio_pretraining", "model": "wav2vec2", "criterion": "wav2vec", "optimizer": "adam"}
LAST = "checkpoint_last.pt"
INIT = "init.pt"
SAVED = "config"  # the folder in which hydra saves the settings
# the log goes to hydra_train.log alone
QUIET = ("common.no_progress_bar=true", "++hydra.job_logging.handlers.console.level=ERROR")
LONGEST_REASON = 500  # characters; the reason may list hundreds of weights


def run(args: argparse.Namespace) -> int:
    """Trains in this process or in several. Raises UsageError, CheckpointError, and what fairseq raises."""
    for text in args.overrides:
        if "=" not in text.lstrip("+~"):
            raise UsageError(f"{text!r}: expected name=value, such as data=manifests")
    if args.nproc < 1:
        raise UsageError(f"--nproc must be at least 1, found {args.nproc}")
    short = dict(text.split("=", 1) for text in args.overrides if text.partition("=")[0] in SHORT)
    others = [text for text in args.overrides if text.partition("=")[0] not in SHORT]
    # With ++ the configuration file may lack the name. In sections that fairseq does not check hydra would accept any.
    others = [f"++{text}" if text.startswith(CHECKED_SECTIONS) else text for text in others]
    if "user_dir" in " ".join(others):
        raise UsageError(NO_USER_DIR)
    config = config_path(args)
    out = pathlib.Path(short.get("out", "pretrained")).absolute()
    world = world_size()
    settings = [*short_settings(short, out), *machine_settings(config, others, world), *(QUIET if is_quiet() else ())]
    if args.nproc > 1 and world == 1:
        if is_locked(out / LOCK):  # checked here, because torchrun prints a long report when a process fails
            raise in_use(f"out={out}")
        # without --nproc, which torchrun would take as its option
        return launch(args.nproc, [f"--config={config}", *args.overrides, *(["--quiet"] if is_quiet() else [])])
    check_names(others)
    train(config, [*settings, *others], out, short.get("init"))
    return 0


def world_size() -> int:
    """The number of processes that torchrun started to train together; 1 for a single process.

    Raises UsageError for processes that cannot find one another, and for a WORLD_SIZE that is not a number.
    """
    world = process_count("WORLD_SIZE")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if world > 1 and missing:
        raise UsageError(
            f"WORLD_SIZE={world} says that {world} processes were started, but without {', '.join(missing)} they "
            f"cannot find one another; unset it and give --nproc {world}, or start them with torchrun"
        )
    return world


def check_names(settings: Sequence[str]) -> None:
    """Raises UsageError for ``+section.name=value`` with a name unknown to fairseq, which hydra would add."""
    from fairseq.dataclass.configs import FairseqConfig

    for text in settings:
        section, _, name = text.split("=", 1)[0].lstrip("+").partition(".")
        kind = getattr(FairseqConfig.__dataclass_fields__.get(section), "type", None)
        known = list(getattr(kind, "__dataclass_fields__", ()))
        if known and name.split(".")[0] not in known:
            near = ", ".join(difflib.get_close_matches(name, known)) or f"one of its {len(known)}"
            raise UsageError(f"{text}: fairseq's section {section} has no {name!r}; expected {near}")


def config_path(args: argparse.Namespace) -> pathlib.Path:
    """The configuration file. Raises UsageError if it does not exist or cannot be read."""
    if args.config_dir or args.config_name:
        if args.config or not (args.config_dir and args.config_name):
            raise UsageError("--config-dir and --config-name belong together and replace --config")
        path = pathlib.Path(args.config_dir, f"{args.config_name.removesuffix('.yaml')}.yaml")
    else:
        name = args.config or DEFAULT_CONFIG
        path = pathlib.Path(name) if name.endswith(".yaml") else CONFIGS / f"{name}.yaml"
    if not path.is_file():
        raise UsageError(f"{path}: no such configuration; expected a yaml file or one of {PACKAGED}")
    try:
        loaded = read_yaml(path.read_text("utf-8"))  # hydra expands aliases without a limit
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not YAML: {error}") from None
    if not isinstance(loaded, dict):
        raise UsageError(f"{path}: expected sections of settings, such as task and model, found {shown(loaded)}")
    return path.absolute()


def short_settings(short: dict[str, str], out: pathlib.Path) -> list[str]:
    """fairseq's settings for data=, guidance= and out=. Raises UsageError for missing folders."""
    settings = [
        f"checkpoint.save_dir={quoted(out / 'checkpoints')}",
        f"common.tensorboard_logdir={quoted(out / 'tensorboard')}",
        f"hydra.run.dir={quoted(out)}",
        f"hydra.output_subdir={SAVED}",
        "hydra.job.chdir=false",
    ]
    for name in ("data", "guidance"):
        if name in short and not pathlib.Path(short[name]).is_dir():
            raise UsageError(f"{name}={short[name]}: no such folder; expected the {SHORT[name]}")
    if "data" in short:
        settings.append(f"++task.data={quoted(pathlib.Path(short['data']).absolute())}")
    if "guidance" in short:
        root = pathlib.Path(short["guidance"]).absolute()
        for kind in ("alpha", "boundaries"):
            if not (root / kind).is_dir():
                raise UsageError(f"guidance={short['guidance']}: has no folder {kind}; `s3prl-ofa guidance` makes it")
            settings.append(f"++task.{kind}_root={quoted(root / kind)}")
    return settings


def quoted(path: pathlib.Path) -> str:
    """A path as a hydra value; unquoted commas, brackets and equals signs would be interpreted."""
    text = str(path).replace("'", "\\'")
    return f"'{text}'"


def machine_settings(config: pathlib.Path, given: Sequence[str], world: int) -> list[str]:
    """fairseq's settings for this machine and for the processes that train together."""
    names = {text.split("=", 1)[0].lstrip("+") for text in given}
    settings = {}
    cuda = torch.cuda.is_available()
    if not cuda:
        settings["common.cpu"] = "true"
        settings["common.fp16"] = "false"  # half precision is slow on CPUs, if it works at all
    if world > 1:
        # fairseq would derive its rank under torchrun from the number of GPUs
        settings |= {
            "distributed_training.distributed_world_size": world,
            "distributed_training.distributed_rank": os.environ["RANK"],
            "distributed_training.device_id": os.environ.get("LOCAL_RANK", 0) if cuda else 0,
            "distributed_training.distributed_backend": "nccl" if cuda else "gloo",
            "distributed_training.distributed_init_method": "env://",
            "distributed_training.distributed_no_spawn": "true",
            "distributed_training.ddp_backend": "legacy_ddp",
            # otherwise fairseq broadcasts a pickle, which today's torch refuses
            "checkpoint.load_checkpoint_on_all_dp_ranks": "true",
        }
        # update_freq of packaged configurations is for one process; several processes share the work.
        every = (yaml.safe_load(config.read_text("utf-8")).get("optimization") or {}).get("update_freq")
        if config.parent == CONFIGS and every:
            settings["optimization.update_freq"] = f"[{max(1, round(every[0] / world))}]"
    else:
        settings["distributed_training.distributed_world_size"] = 1
    return [f"++{name}={value}" for name, value in settings.items() if name not in names]


def launch(processes: int, argv: Sequence[str]) -> int:
    """Runs this command in several processes with torchrun. Returns the exit status."""
    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise UsageError(
            f"--nproc {processes}: this machine has {torch.cuda.device_count()} GPUs; give at most that many"
        )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    process = subprocess.Popen([*torchrun, "-m", "s3prl_ofa", "pretrain", *argv], env=environment)
    return wait_for(process) and 1  # an interrupt terminates torchrun; killing it would leave its processes behind


def train(config: pathlib.Path, settings: list[str], out: pathlib.Path, init: str | None) -> None:
    """Runs fairseq's command with the plugin in this process; a finished training is left as it is."""
    last = out / "checkpoints" / LAST
    leads = world_size() == 1 or int(os.environ["RANK"]) == 0

    def is_wanted(cfg) -> bool:
        check_complete(cfg)
        if reason := finished(cfg, last):
            if leads:
                tell(f"nothing left to train: {reason}")
            return False
        if init is not None and cfg.model._name in CTC_NAMES:  # which takes its architecture from where it starts
            cfg.model.w2v_path, cfg.checkpoint.finetune_from_model = str(out / INIT), None
        elif init is not None and not last.exists():
            check_architecture(cfg, init)
        return True

    lock = locked_folder(out, f"out={out}", ["checkpoints/.checkpoint*"]) if leads else contextlib.nullcontext()
    with lock, writing(out):
        if leads and last.exists():
            report_other_data(out, settings)
        if init is not None:
            if not last.exists():
                write_init(init, out / INIT)
            settings = [*settings, f"checkpoint.finetune_from_model={quoted(out / INIT)}"]
        hydra_main([f"--config-dir={config.parent}", f"--config-name={config.stem}", *settings], is_wanted)
    if leads:
        tell(f"trained: {last}\nfeatures from it: s3prl-ofa extract AUDIO --ckpt {last} --lambd 0.5 --out features")


def report_other_data(out: pathlib.Path, settings: list[str]) -> None:
    """Says so if a training that is resumed, or finished, had other data or guidance than the settings give."""
    try:
        began = yaml.safe_load((out / SAVED / "overrides.yaml").read_text("utf-8")) or []
    except (OSError, ValueError, yaml.YAMLError):
        return
    for start, name in {"++task.data=": "data", "++task.alpha_root=": "guidance"}.items():
        then, now = ({text for text in texts if text.startswith(start)} for texts in (began, settings))
        if then != now:
            was, given = (" and ".join(text.removeprefix(start) for text in texts) or "none" for texts in (then, now))
            print(f"{out} was trained with {name} {was}, and now gets {given}", file=sys.stderr)


def check_complete(cfg: Any) -> None:
    """Raises UsageError if data is not given, or if a section names something that fairseq does not have."""
    from fairseq.models import MODEL_REGISTRY
    from fairseq.registry import REGISTRIES
    from fairseq.tasks import TASK_REGISTRY
    from omegaconf import OmegaConf

    known = {name: registry["registry"] for name, registry in REGISTRIES.items()}
    for section, names in (known | {"task": TASK_REGISTRY, "model": MODEL_REGISTRY}).items():
        name = (cfg.get(section) or {}).get("_name")
        if name is None and section in NEEDED:
            raise UsageError(f"the configuration has no {section}._name; expected one, such as {NEEDED[section]}")
        if name is not None and name not in names:
            near = ", ".join(difflib.get_close_matches(name, names)) or f"one of {len(names)} others"
            raise UsageError(f"{section}._name: fairseq has no {section} {name!r}; expected {near}")
    if OmegaConf.is_missing(cfg.task, "data"):
        raise UsageError(f"data=FOLDER is missing; expected the {SHORT['data']}")


def finished(cfg: Any, last: pathlib.Path) -> str | None:
    """Why the training in the checkpoint ``last`` is finished under the current settings; None if it is not.

    fairseq checks only after an update, so each run would train for one more update. Raises CheckpointError for an
    unreadable file.
    """
    if cfg.checkpoint.restore_file != LAST or cfg.checkpoint.reset_optimizer or not last.exists():
        return None
    try:
        state = read_torch_file(last, for_torch=True)
        extra, updates = state["extra_state"], state["optimizer_history"][-1]["num_updates"]
        epoch, seconds = extra["train_iterator"]["epoch"], extra.get("previous_training_time", 0)
        stale = extra.get("OFAPretrainingTask", {}).get("num_runs", 0)
        limits, patience = cfg.optimization, cfg.checkpoint.patience
        if 0 < limits.max_update <= updates:
            return f"{last} has {updates} updates, optimization.max_update is {limits.max_update}"
        if 0 < limits.max_epoch < epoch:
            return f"{last} has {epoch - 1} epochs, optimization.max_epoch is {limits.max_epoch}"
        if 0 < limits.stop_time_hours < seconds / 3600:
            return f"{last} took {seconds / 3600:.2f} hours, optimization.stop_time_hours is {limits.stop_time_hours}"
        if 0 < patience <= stale:
            return f"{last} did not improve in {stale} validations, checkpoint.patience is {patience}"
    except CheckpointError as error:
        raise CheckpointError(f"{last}: {explain_refusal(error)}") from None
    except (KeyError, IndexError, TypeError, AttributeError):
        pass  # fairseq will report what is wrong with it
    return None


def hydra_main(arguments: Sequence[str], is_wanted: Callable[[Any], bool]) -> None:
    """Runs fairseq's command in this process; trains if ``is_wanted(cfg)`` for the complete configuration.

    Raises UsageError for unknown or invalid settings, CheckpointError for weights that do not fit, and what fairseq
    raises.
    """
    from fairseq import checkpoint_utils
    from fairseq.logging import progress_bar
    from fairseq_cli import hydra_train
    from fairseq_cli.train import should_stop_early
    from hydra.core import utils as hydra_utils
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    with_defaults, train_model = hydra_train._hydra_main, hydra_train.pre_main
    # Left behind by an earlier training in this process: its best scores and TensorBoard writers.
    for state in (vars(checkpoint_utils.save_checkpoint), vars(should_stop_early), progress_bar._tensorboard_writers):
        state.clear()
    failures: list[Exception] = []
    save_config, configs = hydra_utils._save_config, []  # of a training that is finished, hydra would replace them

    def main(cfg, **kwargs) -> None:
        if is_wanted(cfg):
            for arguments in configs:
                save_config(*arguments)
            train_model(cfg, **kwargs)

    def keep_failure(cfg, **kwargs) -> float:
        # hydra would print all overrides before raising
        try:
            return with_defaults(cfg, **kwargs)
        except Exception as error:
            failures.append(error)
            return float("nan")

    os.environ["HYDRA_FULL_ERROR"] = "1"  # hydra then raises errors unchanged
    logging.raiseExceptions = False  # no tracebacks when the log's disk is full: saving the checkpoint reports that
    try:
        with (
            no_code_from_files(),
            no_code_from_names(),
            patched_attributes(hydra_utils, _save_config=lambda *arguments: configs.append(arguments)),
            patched_attributes(hydra_train, _hydra_main=keep_failure, pre_main=main),
            patched_attributes(sys, argv=["s3prl-ofa pretrain", *arguments]),
        ):
            hydra_train.cli_main()
        if failures:
            raise failures[0]
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(refusal(error)) from error
    except Exception as error:
        if message := worker_message(error):
            raise ValueError(message) from error
        if "loading state_dict" in (reason := " ".join(str(error.__context__).split())):
            # fairseq says that it cannot load the weights, but not why
            raise CheckpointError(f"{error}: {reason[:LONGEST_REASON]}") from error
        raise


def refusal(error: Exception) -> str:
    """Which setting hydra or omegaconf refuses, and why, in one sentence without their internals."""
    from hydra.errors import OverrideParseException
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    if isinstance(error, OverrideParseException):
        return f"{error.override.lstrip('+')}: hydra cannot read this value; check its brackets, or put it in quotes"
    cause = error.__cause__ if hasattr(error.__cause__, "full_key") else error
    reason = str(cause).strip().splitlines()[0]
    if isinstance(cause, ConfigAttributeError | ConfigKeyError):
        known = list(getattr(cause.object_type, "__dataclass_fields__", ()))
        near = ", ".join(difflib.get_close_matches(str(cause.key), known)) or f"one of {len(known)} others"
        reason = f"there is no such setting; expected {near}"
    key = getattr(cause, "full_key", None)
    return f"{key}: {reason}" if key else reason


def write_init(init: str, target: pathlib.Path) -> None:
    """Converts a checkpoint of any known format, complete or not, to fairseq's. Raises CheckpointError.

    Several processes write the same content, atomically.
    """
    checkpoint = read_checkpoint(init)
    with naming(checkpoint.path):
        state = write_state(checkpoint)
        weights = split_weight_norm(drop_needless_projection(checkpoint))
        check_finite(weights, torch.float32)  # the dtype of fairseq's model
    state["model"] = {name: weight.clone() for name, weight in weights.items()}
    with atomic_path(target) as temporary:
        torch.save(state, temporary)


def check_architecture(cfg, init: str) -> None:
    """Raises CheckpointError naming the first setting in which checkpoint and configuration differ."""
    from omegaconf import OmegaConf

    checkpoint = read_checkpoint(init)
    model_cfg = OmegaConf.to_container(cfg.model, resolve=True, enum_to_str=True)
    task_cfg = OmegaConf.to_container(cfg.task, resolve=True, enum_to_str=True)
    with naming(pathlib.Path(init)):  # the checkpoint's weights are part of what is read
        configured = read_config(model_cfg, task_cfg, checkpoint.weights).to_dict()
    for name, value in checkpoint.config.to_dict().items():
        if name != "compressor" and configured[name] != value:
            differ = f"its model has {name} {value}, but the configuration has {configured[name]}"
            raise CheckpointError(f"{init}: {differ}; change the configuration, or take another checkpoint")
