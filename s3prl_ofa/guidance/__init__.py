"""Alpha and boundary targets for pretraining, from alignments or from speech alone: ``s3prl-ofa guidance``.

layout.py is the files themselves and imports nothing but torch, so that training can read them.
"""
