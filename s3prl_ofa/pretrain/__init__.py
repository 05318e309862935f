"""Pretraining: what is trained beyond wav2vec 2.0 itself. Nothing here is imported for inference."""
