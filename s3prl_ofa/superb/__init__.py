"""Everything that touches S3PRL.

Importing this package is enough for S3PRL to know the upstreams ``ofa_wav2vec2``, ``ofa_wav2vec2_local``,
``ofa_wav2vec2_url`` and ``ofa_wav2vec2_custom``, to keep the lengths of their frames, and to run on today's torch,
torchaudio and huggingface_hub (see shims.py). It imports neither s3prl nor torchaudio: that is left to who needs them.

register.py, shims.py, link.py          how S3PRL comes to know us and to run on today's stack
workers.py                              the same in data workers that are not forked
expert.py, rate_options.py              the upstream and its options    featurizer.py   what S3PRL's featurizer lacks
adaptive.py                             a rate that is trained          feature_cache.py   its features, where it is not
run_downstream.py, run_options.py       the command around S3PRL's runner
experiment.py, exact_resume.py          its folder, and going on as if it had never stopped
meter.py                                what a run scored and cost
plain_names.py, caches.py               nothing that S3PRL reads is run
processes.py, task_frames.py            several processes; which frames a task takes
tasks.py, experiment_data.py            configs of asr, pr and sid, and where their data is
corpora.py, labels.py, asr_dataset.py, ctc_corpus/, ctc_check.py, speakers.py, prepare/   data and labels of the three
packed_lstm.py                          asr's LSTM, trained faster on a CPU
"""

from s3prl_ofa.superb import register

register.register()
