"""The output formats of ``--format``. Every file is written completely or not at all.

A new format is an entry of ``FORMATS`` with a function ``write(folder, file, features, times)``, where
file: path below ``folder``, "features/NAME" and the format's suffix.
features: (frames, dim), or (layers + 1, frames, dim) for all hidden states; float32 or float16.
times: (frames, 2) float64, start and end of every frame in seconds.
"""

import importlib.util
import io
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import safetensors.numpy

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_path

FEATURES, TIMES = "features", "times"  # names of folders below the output folder, and of arrays within a file


def write_npy(folder: pathlib.Path, file: str, features: np.ndarray, times: np.ndarray) -> None:
    """features/NAME.npy and times/NAME.npy, for ``numpy.load``."""
    for path, array in zip(files_of(folder, file), (times, features), strict=True):
        with atomic_path(path) as temporary:
            np.save(temporary, array)


def write_safetensors(folder: pathlib.Path, file: str, features: np.ndarray, times: np.ndarray) -> None:
    """One file with the tensors "features" and "times"."""
    arrays = {FEATURES: np.ascontiguousarray(features), TIMES: np.ascontiguousarray(times)}
    with atomic_path(folder / file) as temporary:
        safetensors.numpy.save_file(arrays, temporary)


def write_hdf5(folder: pathlib.Path, file: str, features: np.ndarray, times: np.ndarray) -> None:
    """One file with the datasets "features" and "times"; a kill would damage a single HDF5 file for all."""
    import h5py

    content = io.BytesIO()  # when a disk is full HDF5 cannot close its file: it prints errors and aborts the process
    with h5py.File(content, "w") as hdf5:
        hdf5[FEATURES] = features
        hdf5[TIMES] = times
    with atomic_path(folder / file) as temporary:
        temporary.write_bytes(content.getbuffer())


class Format(NamedTuple):
    suffix: str
    write: Callable[[pathlib.Path, str, np.ndarray, np.ndarray], None]


FORMATS = {
    "npy": Format(".npy", write_npy),
    "safetensors": Format(".safetensors", write_safetensors),
    "hdf5": Format(".h5", write_hdf5),
}


def files_of(folder: pathlib.Path, file: str) -> list[pathlib.Path]:
    """All files of the utterance whose features are in ``folder / file``; that file comes last."""
    times = [folder / TIMES / pathlib.PurePosixPath(file).relative_to(FEATURES)] if file.endswith(".npy") else []
    return [*times, folder / file]


def get_format(name: str) -> Format:
    """Raises UsageError when the format's package is not installed."""
    if name == "hdf5" and importlib.util.find_spec("h5py") is None:
        raise UsageError("--format hdf5 needs h5py, which is not installed: pip install 's3prl-ofa[hdf5]'")
    return FORMATS[name]
