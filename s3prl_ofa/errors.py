"""Errors that a user can mend. The command line prints their message as one line, without a traceback."""


class UsageError(ValueError):
    """The request itself is wrong (a bad option, a missing folder): exit status 2."""


class CheckpointError(ValueError):
    """A checkpoint cannot be read, is not safe to read, or does not fit: the message names the file and why."""
