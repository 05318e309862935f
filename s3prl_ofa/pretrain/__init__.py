"""Pretraining on fairseq. Importing this package registers once-for-all compression with fairseq.

``fairseq.checkpoint_utils.load_model_ensemble_and_task`` then reads files trained here and the reference's files, and
fairseq trains the reference's configurations. Inference imports nothing from here.
"""

import importlib.util

from s3prl_ofa.errors import UsageError

if importlib.util.find_spec("fairseq") is None:
    raise UsageError("pretraining needs fairseq, which is not installed: pip install 's3prl-ofa[pretrain]'")

from s3prl_ofa.pretrain.register import register  # noqa: E402

register()
