"""Alpha and boundary targets for pretraining, from alignments or from speech alone: ``s3prl-ofa guidance``.

layout.py reads and writes the files, and is all that training needs.
"""
