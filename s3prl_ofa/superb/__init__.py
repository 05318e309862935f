"""Everything that uses S3PRL.

Importing this package registers the upstreams ``ofa_wav2vec2``, ``ofa_wav2vec2_local``, ``ofa_wav2vec2_url`` and
``ofa_wav2vec2_custom`` with S3PRL, and makes S3PRL run on current versions of torch, torchaudio and huggingface_hub. It
imports neither s3prl nor torchaudio.

compat/          shims for the current stack, checks of what S3PRL would evaluate, links into a source checkout
upstream/        the upstream, its options, the featurizer that reads its lengths, which frames a task takes
feature_cache/   hidden states of a frozen upstream, cached on disk
learned_rate/    lambd as a parameter that is trained with the downstream task
tasks/           configs, corpora and labels of SUPERB's tasks
prepare/         from corpora to the files that the tasks need
downstream/      the command, a subclass of S3PRL's Runner, and the folder of an experiment
predict/         what a trained experiment predicts for new audio, without its corpus
registration.py  what is patched in S3PRL on import
"""

from s3prl_ofa.superb import registration

registration.register()
