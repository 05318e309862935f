"""The checkpoints and the folder of an S3PRL experiment: one training at a time, and always a complete checkpoint.

S3PRL removes the oldest ``states-*.ckpt`` and then writes the next one in place, so that a kill in between leaves an
experiment that cannot resume. Here a checkpoint is written under a temporary name and renamed before an older one is
removed.
"""

import argparse
import contextlib
import logging
import os
import pathlib
import pickle
import zipfile
from collections.abc import Iterator
from typing import Any

import torch

from s3prl_ofa.checkpoint.experiment import STATES, UPSTREAM, UPSTREAM_CONFIG, states_files
from s3prl_ofa.checkpoint.safe_loading import explain_refusal, namespace_in_checkpoints
from s3prl_ofa.checkpoint.torch_file import check_torch_file
from s3prl_ofa.errors import CheckpointError, UsageError
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.superb.compat import plain_names
from s3prl_ofa.superb.downstream.resume import KEY as POSITION
from s3prl_ofa.superb.downstream.resume import Position

logger = logging.getLogger(__name__)

# the types of its entries
TYPES = {"Args": argparse.Namespace, "Step": int, "Epoch": int, "Config": dict, "Optimizer": dict, "Scheduler": dict}
TYPES |= dict.fromkeys(("Upstream", "Featurizer", "Rate", "Downstream", POSITION), dict)
SPARE_WEIGHTS = 1_000_000  # that a task may build beside its model, as losses and packages being imported do
OLD_RATE = "rate."  # names of a learned rate in the featurizer's state
TEMPORARIES = (".states-*.ckpt", ".*best*.ckpt")  # S3PRL's names, as atomic_path changes them


class SafeSaves:
    """``torch.save`` and ``os.remove`` for S3PRL's runner, which removes first and then saves."""

    def __init__(self) -> None:
        self.outdated: list[str] = []
        self.position: Position | None = None  # saved too
        self.upstream_config: dict[str, Any] | None = None  # saved beside the weights of an upstream that is trained

    def remove(self, path: str) -> None:
        """Marks the file to be removed when the next ``states-*.ckpt`` is in place."""
        self.outdated.append(os.path.abspath(path))

    def save(self, states: Any, path: str) -> None:
        if self.position is not None:
            states = {**states, POSITION: self.position.state()}
        if UPSTREAM in states and self.upstream_config is not None:
            states = {**states, UPSTREAM_CONFIG: self.upstream_config}
        with atomic_path(path, sync=True) as temporary, temporary.open("wb") as file:
            torch.save(states, file)
        if STATES.fullmatch(os.path.basename(path)):
            for outdated in set(self.outdated) - {os.path.abspath(path)}:
                pathlib.Path(outdated).unlink(missing_ok=True)
            self.outdated.clear()


def past_checkpoints(past_exp: str | None, auto_resume: bool, expdir: str | None) -> list[pathlib.Path]:
    """The checkpoints to resume from, best first; none for a new experiment.

    As in S3PRL, ``-a`` takes precedence over ``-e`` if its folder holds a checkpoint. Raises UsageError if ``-e`` is
    neither a file nor a folder with ``states-*.ckpt``.
    """
    found = states_files(pathlib.Path(expdir)) if auto_resume and expdir else []
    if found or not past_exp:
        return found
    past = pathlib.Path(past_exp)
    found = [past] if past.is_file() else states_files(past)
    if not found:
        raise UsageError(f"-e {past}: there is neither a checkpoint nor a folder with states-*.ckpt")
    return found


def newest_readable(paths: list[pathlib.Path]) -> tuple[pathlib.Path, dict[str, Any]]:
    """The first complete checkpoint of ``paths``, and its content.

    Raises UsageError if there is none, and for one that would make S3PRL run code that is not installed here.
    """
    for index, path in enumerate(paths):
        states = read_states(path)
        if states is None:
            continue
        if not {"Args", "Config"} <= states.keys():
            raise UsageError(f"-e {path}: it is not a checkpoint of run_downstream")
        check_types(states, f"-e {path}")
        plain_names.check(states["Args"], states["Config"], f"-e {path}: ")
        for skipped in paths[:index]:
            logger.warning("%s cannot be read (incompletely written?): resuming from %s", skipped, path)
        return path, states
    older = ", nor can an older one" if len(paths) > 1 else ""
    raise UsageError(
        f"{paths[0]} cannot be read (incompletely written?){older}; "
        f"give another checkpoint with -e FILE, or remove it and train again"
    )


def initial_states(checkpoint: str) -> dict[str, Any]:
    """The checkpoint of ``-i``. Raises UsageError if it is missing, incomplete or malformed, and CheckpointError."""
    if not os.path.isfile(checkpoint):
        raise UsageError(f"-i {checkpoint}: there is no such checkpoint; expected a file that run_downstream saved")
    states = read_states(checkpoint)
    if states is None:
        raise UsageError(f"-i {checkpoint} cannot be read: it is incomplete, or not a checkpoint of S3PRL")
    check_types(states, f"-i {checkpoint}")
    plain_names.check_config(states.get("Config", dict.fromkeys(plain_names.SECTIONS, {})), f"-i {checkpoint}: ")
    return states


def read_states(path: str | os.PathLike) -> dict[str, Any] | None:
    """An S3PRL checkpoint, on the CPU; None for a file that is empty, cut off or not a checkpoint.

    Raises CheckpointError for one that holds more than weights and plain values.
    """
    namespace_in_checkpoints()
    try:
        check_torch_file(path)
        states = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged file can fail anywhere in the unpickler, with any exception
        reason = explain_refusal(error)
        complete = isinstance(error, pickle.UnpicklingError | CheckpointError) and zipfile.is_zipfile(path)
        if complete or reason.startswith("refused"):
            raise CheckpointError(f"{path}: {reason}") from error
        return None
    if not isinstance(states, dict):
        return None
    featurizer = states.get("Featurizer")
    if isinstance(featurizer, dict) and f"{OLD_RATE}raw" in featurizer:  # as earlier versions saved it
        names = [name for name in featurizer if str(name).startswith(OLD_RATE)]
        states["Rate"] = {name.removeprefix(OLD_RATE): featurizer.pop(name) for name in names}
    return states


def check_types(states: dict[str, Any], where: str) -> None:
    """Raises UsageError for an entry whose type is not the one that S3PRL stores."""
    for name, kind in TYPES.items():
        if not isinstance(states.get(name, kind()), kind):
            raise UsageError(f"{where}: its {name} is a {type(states[name]).__name__}, expected {kind.__name__}")


@contextlib.contextmanager
def bounded_weights(state: dict[str, Any] | None) -> Iterator[None]:
    """Raises CheckpointError as soon as modules with far more weights than ``state`` holds are built in the block.

    A stored config could ask for more than the memory. state: of the model that is to be built; without one its size is
    not bounded.
    """
    if not state:
        yield
        return
    stored = sum(value.numel() for value in state.values() if isinstance(value, torch.Tensor))
    built = 0

    def count(module: torch.nn.Module, name: str, parameter: torch.nn.Parameter | None) -> None:  # before it is filled
        nonlocal built
        built += 0 if parameter is None else parameter.numel()
        if built > 2 * stored + SPARE_WEIGHTS:
            raise CheckpointError(
                f"the stored config asks for {built} weights or more, the checkpoint holds {stored}; give another one"
            )

    hook = torch.nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


@contextlib.contextmanager
def made_folder(path: str | os.PathLike) -> Iterator[None]:
    """Makes the folder of an experiment; new folders that are still empty at the end are removed again.

    Raises UsageError if it cannot be made.
    """
    folder = pathlib.Path(path)
    missing = [place for place in (folder, *folder.parents) if not os.path.isdir(place)]
    try:
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            reason = error.strerror
            raise UsageError(f"{path}: this folder cannot be made ({reason}); choose another -n or -p") from error
        yield
    finally:
        for place in missing:  # a folder before the one that it is in
            with contextlib.suppress(OSError):
                place.rmdir()  # only if empty


def check_free(expdir: str | os.PathLike) -> None:
    """Raises UsageError if a new training would overwrite the checkpoints of an earlier one."""
    folder = pathlib.Path(expdir)
    if [*folder.glob("states-*.ckpt"), *folder.glob("[!.]*best*.ckpt")]:
        raise UsageError(f"{expdir} holds an experiment; -a or -e resumes it, or choose another -n or -p")
