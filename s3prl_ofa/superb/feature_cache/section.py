"""A section of a cache's folder: entries of one kind, which processes share and which outlast them."""

import contextlib
import hashlib
import json
import logging
import os
import pathlib
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from s3prl_ofa.errors import UsageError
from s3prl_ofa.io.files import atomic_write
from s3prl_ofa.io.locks import locked
from s3prl_ofa.superb.feature_cache.quota import KEY, LOCK, SUFFIX, WRITING, Quota

logger = logging.getLogger(__name__)

GB = 10**9

Entry = dict[str, Tensor]  # of one utterance


class Section(contextlib.ExitStack):
    """FOLDER/KEY, where KEY is the hash of ``key``, and in it a file per entry.

    limit_gb: the size limit of the whole folder in 10^9 bytes, for all sections and processes together; when it is
    reached, sections that are not in use are deleted, least recently opened first, and after that nothing more is
    cached. names: of the tensors of an entry.

    Raises UsageError if the folder cannot be used. The folder is locked until the section is closed.
    """

    def __init__(self, folder: str | os.PathLike, limit_gb: float, key: dict[str, Any], names: set[str]) -> None:
        super().__init__()
        self.names, self.full = names, False
        text = json.dumps(key, indent=1, sort_keys=True)
        self.section = pathlib.Path(folder, hashlib.sha256(text.encode()).hexdigest()[:32])
        try:
            self.quota = Quota(pathlib.Path(folder), round(limit_gb * GB), self)
            with locked(self.quota.lock, wait=True):
                self.enter_context(locked(self.section / LOCK, wait=True, shared=True))
                atomic_write(self.section / KEY, text + "\n")  # its time is when the section was last opened
            self.quota.reserve(0, self.section)  # the limit may be lower than last time
        except OSError as error:
            self.close()
            raise UsageError(
                f"the feature cache {folder} cannot be written ({error.strerror}); "
                "choose another folder, or leave out --cache-gb"
            ) from error

    def file(self, digest: str) -> pathlib.Path:
        """The file of the entry with this SHA-256."""
        return self.section / digest[:2] / (digest + SUFFIX)

    def read(self, path: pathlib.Path) -> Entry | None:
        """An entry, memory-mapped; None if there is none. A broken one is deleted."""
        try:
            entry = safetensors.torch.load_file(path)
            if entry.keys() == self.names:
                return entry
            error = f"it holds {', '.join(sorted(entry))}"
        except FileNotFoundError:
            return None
        except (safetensors.SafetensorError, OSError) as found:
            error = found
        logger.warning("%s in the feature cache cannot be read and is computed again: %s", path, error)
        if not isinstance(error, OSError):
            with contextlib.suppress(OSError):
                path.unlink()
        return None

    def store(self, path: pathlib.Path, entry: Entry) -> None:
        """Writes the entry if it is missing and there is room; once the disk is full, nothing more is written."""
        if self.full or path.exists():
            return
        content = safetensors.torch.save(entry)
        try:
            # Points of a sweep hear the same utterances in the same order: of two with one entry, the second must see
            # that it is there, instead of counting its size again.
            with locked(self.section / WRITING, wait=True):
                if path.exists():
                    return
                if not self.quota.reserve(len(content), self.section):
                    self.full = True
                    text = "the feature cache %s is full: what is missing is computed every time"
                    logger.info(text, self.quota.folder)
                    return
                atomic_write(path, content, sync=True)
        except (OSError, ValueError) as error:
            # what was reserved stays reserved until a process that has the folder to itself recounts
            self.full = True
            reason = getattr(error, "strerror", None) or error
            logger.warning("nothing more is stored in the feature cache: %s: %s", path.parent, reason)
