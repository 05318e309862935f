"""Lets training continue when a full disk ends its TensorBoard log."""

import functools
import logging
from collections.abc import Callable
from typing import Any

from s3prl_ofa.io.files import no_room

logger = logging.getLogger(__name__)


def outlast_full_disk(record_writer: type) -> None:
    """Makes the RecordWriter of tensorboard or tensorboardX warn once that nothing more is logged, and carry on.

    Both write in a thread. If it dies, tensorboard makes training wait forever, and tensorboardX prints tracebacks.
    """
    for name in ("write", "flush", "close"):
        method = getattr(record_writer, name)
        if not hasattr(method, "__wrapped__"):
            setattr(record_writer, name, outlasting(method))


def outlasting(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(writer: Any, *args: Any) -> Any:
        try:
            return method(writer, *args)
        except OSError as error:
            if no_room(error) is None:
                raise
            if not hasattr(writer, "is_full"):
                writer.is_full = True
                logger.warning("nothing more is logged to TensorBoard: %s", error.strerror)

    return call
