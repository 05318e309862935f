"""Everything that touches S3PRL.

Importing this package is enough for S3PRL to know the upstreams ``ofa_wav2vec2``, ``ofa_wav2vec2_local``,
``ofa_wav2vec2_url`` and ``ofa_wav2vec2_custom``, to keep the lengths of their frames, and to run on today's torch,
torchaudio and huggingface_hub. It imports neither s3prl nor torchaudio: that is left to those who need them.

compat/          what S3PRL needs on today's stack, what it must not evaluate, links into a source checkout
upstream/        the upstream, its options, the featurizer that reads its lengths, which frames a task takes
feature_cache/   hidden states of a frozen upstream, kept on disk
learned_rate/    lambd as a parameter that the downstream task trains
tasks/           configs, corpora and labels of asr, pr and sid
prepare/         from corpora to the files that the tasks need
downstream/      the command around S3PRL's runner, and the folder of an experiment
registration.py  how S3PRL comes to know the upstream
"""

from s3prl_ofa.superb import registration

registration.register()
