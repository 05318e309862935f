"""Pretraining on fairseq's core. Importing this makes once-for-all compression known to fairseq.

After it ``fairseq.checkpoint_utils.load_model_ensemble_and_task`` reads files that were trained here and the
reference's own, and fairseq trains the reference's configurations. Nothing here is imported for inference.
"""

import importlib.util

# Absolute, because fairseq's common.user_dir imports this folder under the name "pretrain".
from s3prl_ofa.errors import UsageError

if importlib.util.find_spec("fairseq") is None:
    raise UsageError("pretraining needs fairseq, which is not installed: pip install 's3prl-ofa[pretrain]'")

from s3prl_ofa.pretrain.register import register  # noqa: E402

register()
