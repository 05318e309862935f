"""Everything that touches S3PRL.

Importing this package is enough for S3PRL to know the upstreams ``ofa_wav2vec2``, ``ofa_wav2vec2_local``,
``ofa_wav2vec2_url`` and ``ofa_wav2vec2_custom``, to keep the lengths of their frames, and to run on today's torch,
torchaudio and huggingface_hub (see shims.py). It imports neither s3prl nor torchaudio: that is left to who needs them.
"""

from s3prl_ofa.superb import register

register.register()
