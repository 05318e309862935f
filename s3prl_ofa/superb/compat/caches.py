"""What S3PRL's tasks cache between runs: no pickle is loaded, and no corpus gets the cache of another."""

import importlib
import json
import pathlib
import pickle
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from tqdm import tqdm

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_path
from s3prl_ofa.superb.compat.shims import ModuleOverlay

LENGTHS = "sv_voxceleb1"  # the task that caches lengths


def secure_caches(downstream: str, expdir: pathlib.Path) -> None:
    """To be called before S3PRL builds the task ``downstream``; may be called again.

    * Modules of S3PRL's tasks that unpickle a cache raise an error instead, because a pickle can run code.
    * The lengths that sv_voxceleb1 caches inside the installed package, by the corpus's name only, go to ``expdir``.
    """
    importlib.import_module(f"s3prl.downstream.{downstream}.expert")
    for name, module in list(sys.modules.items()):
        if name.startswith("s3prl.downstream.") and getattr(module, "pickle", None) is pickle:
            module.pickle = ModuleOverlay(pickle, load=refuse_pickle)
    if downstream == LENGTHS:
        keep_lengths(sys.modules[f"s3prl.downstream.{LENGTHS}.dataset"], expdir / "trimmed_lengths.json")


def refuse_pickle(file: BinaryIO) -> Any:
    raise UsageError(f"{file.name}: S3PRL caches this as a pickle, which can run code: it is not loaded; remove it")


def keep_lengths(dataset: types.ModuleType, cache: pathlib.Path) -> None:
    """Makes sv_voxceleb1's training set, in its module ``dataset``, store the lengths of its files in ``cache``."""

    def init(self, vad_config, key_list, file_path, meta_data, max_timestep=None, n_jobs=12) -> None:
        self.roots, self.root_key, self.max_timestep, self.vad_c = file_path, key_list, max_timestep, vad_config
        roots = [pathlib.Path(root) for root in file_path]
        paths = [path for root in roots for path in dataset.find_files(root)]
        lengths = trimmed_lengths(paths, cache, lambda paths: measure(dataset, paths, n_jobs))
        self.dataset = [path for path in paths if lengths[path] > vad_config["min_sec"]]
        self.all_speakers = sorted(folder.stem for root in roots for folder in root.iterdir() if folder.is_dir())
        self.speaker_num = len(self.all_speakers)

    dataset.SpeakerVerifi_train.__init__ = init


def measure(dataset: types.ModuleType, paths: Sequence[str], n_jobs: int) -> list[int]:
    """Samples of each file without its silence, as S3PRL measures them."""
    trim, effects = dataset.apply_effects_file, dataset.EFFECTS

    def length(path: str) -> int:
        return trim(path, effects)[0].shape[-1]

    bar = tqdm(paths, desc="lengths", unit="file", dynamic_ncols=True)
    return dataset.Parallel(n_jobs=n_jobs)(dataset.delayed(length)(path) for path in bar)


def trimmed_lengths(
    paths: Sequence[str], cache: pathlib.Path, measure: Callable[[Sequence[str]], list[int]]
) -> dict[str, int]:
    """The length of every file, from ``cache`` if the file's size and modification time are unchanged."""
    try:
        found = json.loads(cache.read_text("utf-8"))
        kept = {path: [size, time, length] for path, (size, time, length) in found.items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError, RecursionError):  # none, or not written here
        kept = {}
    stats = {path: pathlib.Path(path).stat() for path in paths}
    keys = {path: [stat.st_size, stat.st_mtime_ns] for path, stat in stats.items()}
    new = [path for path in paths if not (path in kept and kept[path][:2] == keys[path])]
    if new:
        kept |= {path: [*keys[path], length] for path, length in zip(new, measure(new), strict=True)}
        with atomic_path(cache) as temporary:
            temporary.write_text(json.dumps(kept), "utf-8")
    return {path: kept[path][2] for path in paths}
