"""``s3prl-ofa verify CKPT``: whether a checkpoint is what it claims, within a minute.

checks.py        the checks, each with what it found
fairseq_path.py  the same features from fairseq's model
command.py       runs them; one page of text, JSON and the exit status
"""
