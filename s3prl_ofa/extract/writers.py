"""Writers of one utterance's features, by the name that ``--format`` takes. Every file is written whole or not at all.

A new format is a function ``(folder, name, features, times) -> path`` in ``WRITERS``.
features: (frames, dim), or (layers + 1, frames, dim) for all hidden states; float32 or float16.
times: (frames, 2) float64, start and end of every frame in seconds.
"""

import importlib.util
import io
import pathlib
from collections.abc import Callable

import numpy as np
import safetensors.numpy

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_path

Writer = Callable[[pathlib.Path, str, np.ndarray, np.ndarray], pathlib.Path]
FEATURES, TIMES = "features", "times"  # names of folders below the output folder, and of arrays within a file


def write_npy(folder: pathlib.Path, name: str, features: np.ndarray, times: np.ndarray) -> pathlib.Path:
    """features/NAME.npy, and times/NAME.npy beside it: ``numpy.load`` reads each."""
    target = folder / FEATURES / f"{name}.npy"
    for path, array in ((folder / TIMES / f"{name}.npy", times), (target, features)):
        with atomic_path(path) as temporary:
            np.save(temporary, array)
    return target


def write_safetensors(folder: pathlib.Path, name: str, features: np.ndarray, times: np.ndarray) -> pathlib.Path:
    """features/NAME.safetensors with the tensors "features" and "times"."""
    target = folder / FEATURES / f"{name}.safetensors"
    arrays = {FEATURES: np.ascontiguousarray(features), TIMES: np.ascontiguousarray(times)}
    with atomic_path(target) as temporary:
        safetensors.numpy.save_file(arrays, temporary)
    return target


def write_hdf5(folder: pathlib.Path, name: str, features: np.ndarray, times: np.ndarray) -> pathlib.Path:
    """features/NAME.h5 with the datasets "features" and "times"; one file an utterance, as an HDF5 file that grows
    is lost when the writer is killed."""
    import h5py

    target = folder / FEATURES / f"{name}.h5"
    whole = io.BytesIO()  # on a full disk HDF5 cannot close its file: it prints errors and ends the process
    with h5py.File(whole, "w") as file:
        file[FEATURES] = features
        file[TIMES] = times
    with atomic_path(target) as temporary:
        temporary.write_bytes(whole.getbuffer())
    return target


WRITERS: dict[str, Writer] = {"npy": write_npy, "safetensors": write_safetensors, "hdf5": write_hdf5}
ENDINGS = {"npy": ".npy", "safetensors": ".safetensors", "hdf5": ".h5"}


def files_of(folder: pathlib.Path, file: str) -> list[pathlib.Path]:
    """All that was written for an utterance; ``file`` is what the writer returned, below ``folder``."""
    paths = [folder / file]
    if file.endswith(".npy"):
        paths.append(folder / TIMES / pathlib.PurePosixPath(file).relative_to(FEATURES))
    return paths


def get_writer(name: str) -> Writer:
    """Raises UsageError when the format is unknown, or its package is not installed."""
    if name not in WRITERS:
        raise UsageError(f"--format {name}: unknown; expected one of {', '.join(WRITERS)}")
    if name == "hdf5" and importlib.util.find_spec("h5py") is None:
        raise UsageError("--format hdf5 needs h5py, which is not installed: pip install 's3prl-ofa[hdf5]'")
    return WRITERS[name]
