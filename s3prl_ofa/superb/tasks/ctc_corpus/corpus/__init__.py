"""The corpora of ``s3prl.downstream.ctc`` that SUPERB's tasks need; S3PRL's wheel does not contain them.

A source checkout of S3PRL has more of them in a folder of the same name: those stay within reach.
"""

import pathlib

from s3prl.downstream import ctc

__path__ += [
    str(folder)
    for parent in ctc.__path__
    if (folder := pathlib.Path(parent, "corpus")).is_dir() and str(folder) not in __path__
]
