"""Everything that touches S3PRL.

Importing this package is enough for S3PRL to know the upstreams ``ofa_wav2vec2``, ``ofa_wav2vec2_local``,
``ofa_wav2vec2_url`` and ``ofa_wav2vec2_custom``, to keep the lengths of their frames, and to run on today's torch,
torchaudio and huggingface_hub (see shims.py). It imports neither s3prl nor torchaudio: that is left to who needs them.

register.py, shims.py, link.py          how S3PRL comes to know us and to run on today's stack
workers.py                              the same in its data workers
expert.py, rate_options.py              the upstream and its options    featurizer.py   what S3PRL's featurizer lacks
adaptive.py                             a rate that is trained          feature_cache.py   its features, where it is not
run_downstream.py, run_options.py       the command around S3PRL's runner
experiment.py, exact_resume.py          its folder, and going on as if it had never stopped
meter.py                                what a run scored and cost
tasks.py, corpora.py, ctc_check.py, ctc_corpus/, prepare/   configs, data and labels of asr, pr and sid
data_workers.py                         data workers where there is no fork
packed_lstm.py                          asr's LSTM, trained faster on a CPU
"""

from s3prl_ofa.superb import register

register.register()
