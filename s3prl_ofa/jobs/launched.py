"""How many processes a launcher, such as torchrun or srun, has started to work together."""

import os

from s3prl_ofa.errors import UsageError, shown


def process_count(name: str) -> int:
    """The number in an environment variable of a launcher; 1 if it is not set. Raises UsageError for anything else."""
    given = os.environ.get(name) or "1"
    if not (given.isdecimal() and int(given)):
        raise UsageError(
            f"{name} must be the number of processes that a launcher has started, found {shown(given)}; unset it, or "
            f"start them with torchrun"
        )
    return int(given)
