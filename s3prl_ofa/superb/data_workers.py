"""Data workers that are started as fresh interpreters, as on macOS and Windows, where nothing is inherited by a fork.

torch sends such a worker the function that it runs, then the dataset. Ours brings what S3PRL's datasets need to be
imported and read: this package's hold on S3PRL, and what its wheel lacks.
"""

from typing import Any

from torch.utils.data._utils import worker

from s3prl_ofa.superb import tasks

worker_loop = worker._worker_loop


class WorkerLoop:
    """torch's loop of a data worker, to be put in its place."""

    def __call__(self, *args: Any) -> None:
        worker_loop(*args)

    def __reduce__(self) -> tuple:
        return prepared, ()


def prepared() -> WorkerLoop:
    """What is called in the worker, before the dataset is read."""
    tasks.complete_s3prl()
    return WorkerLoop()
