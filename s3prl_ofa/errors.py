"""Errors that a user can mend. The command line prints their message as one line, without a traceback."""


class UsageError(ValueError):
    """The request itself is wrong (a bad option, a missing folder): exit status 2."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, is not safe to read, or does not fit: the message names the file and why."""


def worker_message(error: Exception) -> str | None:
    """What went wrong in a data worker: torch gives the worker's whole traceback. None for an error from elsewhere."""
    text = str(error).strip()
    if not (text.startswith("Caught ") and "Original Traceback" in text):
        return None
    return text.splitlines()[-1].partition(": ")[2]
