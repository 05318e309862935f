"""The corpora of ``s3prl.downstream.ctc`` that SUPERB's tasks need; S3PRL's wheel does not contain them.

A source checkout of S3PRL has more of them in a folder of the same name: those stay within reach.
"""

import pkgutil

__path__ = pkgutil.extend_path(__path__, __name__)
