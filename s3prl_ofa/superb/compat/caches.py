"""Secures what S3PRL's tasks cache between runs: pickles are not loaded, and no corpus uses another's cache."""

import pathlib
import pickle
import sys
import types
from typing import Any, BinaryIO

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io import verified
from s3prl_ofa.io.files import atomic_write
from s3prl_ofa.io.scan import each_in_threads
from s3prl_ofa.superb.compat.missing_packages import import_expert
from s3prl_ofa.superb.compat.shims import ModuleOverlay

LENGTHS = "sv_voxceleb1"  # the task that caches lengths


def secure_caches(downstream: str, expdir: pathlib.Path) -> None:
    """Call this before S3PRL builds the task ``downstream``; it may be called again.

    * S3PRL's tasks that would unpickle a cache raise an error instead, because a pickle can run code.
    * sv_voxceleb1 caches lengths in ``expdir``, not inside the installed package by the corpus's name alone.
    """
    import_expert(downstream)
    for name, module in list(sys.modules.items()):
        if name.startswith("s3prl.downstream.") and getattr(module, "pickle", None) is pickle:
            module.pickle = ModuleOverlay(pickle, load=refuse_pickle)
    if downstream == LENGTHS:
        keep_lengths(sys.modules[f"s3prl.downstream.{LENGTHS}.dataset"], expdir / "trimmed_lengths.jsonl")


def refuse_pickle(file: BinaryIO) -> Any:
    raise UsageError(f"{file.name}: S3PRL caches this as a pickle, which can run code: it is not loaded; remove it")


def keep_lengths(dataset: types.ModuleType, cache: pathlib.Path) -> None:
    """Makes sv_voxceleb1's training set, whose module is ``dataset``, cache the lengths of its files in ``cache``."""

    def init(self, vad_config, key_list, file_path, meta_data, max_timestep=None, n_jobs=None) -> None:
        self.roots, self.root_key, self.max_timestep, self.vad_c = file_path, key_list, max_timestep, vad_config
        roots = [pathlib.Path(root) for root in file_path]
        paths = [path for root in roots for path in dataset.find_files(root)]
        if not paths:
            raise UsageError(f"{roots[0]} holds no audio; expected SPEAKER/RECORDING/FILE.wav in it, as in VoxCeleb1")
        lengths = trimmed_lengths(dataset, paths, cache, n_jobs)
        self.dataset = [path for path in paths if lengths[path] > vad_config["min_sec"]]
        self.all_speakers = sorted(folder.stem for root in roots for folder in root.iterdir() if folder.is_dir())
        self.speaker_num = len(self.all_speakers)

    dataset.SpeakerVerifi_train.__init__ = init


def trimmed_lengths(
    dataset: types.ModuleType, paths: list[str], cache: pathlib.Path, n_jobs: int | None
) -> dict[str, int]:
    """The number of samples of every file without its silence: from ``cache`` if the file's size and modification time
    are unchanged, else measured as S3PRL does."""
    trim, effects = dataset.apply_effects_file, dataset.EFFECTS

    def length(path: str) -> int:
        return trim(path, effects)[0].shape[-1]

    kept = verified.read(cache)
    files = {path: verified.file_of(path) for path in paths}
    new = [path for path in paths if files[path] not in kept]
    if new:
        kept |= {files[path]: samples for path, samples in each_in_threads(length, new, n_jobs, "lengths")}
        atomic_write(cache, verified.lines_of(kept))
    return {path: kept[files[path]] for path in paths}
