"""Pretraining on fairseq's core. Importing this makes once-for-all compression known to fairseq.

After it ``fairseq.checkpoint_utils.load_model_ensemble_and_task`` reads files that were trained here and the
reference's own, and fairseq trains the reference's configurations. Nothing here is imported for inference.
"""

# Absolute, because fairseq's common.user_dir imports this folder under the name "pretrain".
from s3prl_ofa.pretrain.register import register

register()
