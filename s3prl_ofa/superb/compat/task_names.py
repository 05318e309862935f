"""SUPERB's tasks, and the names that they have in S3PRL."""

S3PRL_DOWNSTREAM = {
    "asr": "asr",
    "pr": "ctc",
    "sid": "voxceleb1",
    "ks": "speech_commands",
    "ic": "fluent_commands",
    "sf": "ctc",
    "asv": "sv_voxceleb1",
    "sd": "diarization",
    "er": "emotion",
    "qbe": "quesst14_dtw",
}
ASR, PR = S3PRL_DOWNSTREAM["asr"], S3PRL_DOWNSTREAM["pr"]
