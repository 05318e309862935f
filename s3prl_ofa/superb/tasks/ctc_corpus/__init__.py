"""Holds the package ``corpus`` that ``registration.add_corpora`` adds to ``s3prl.downstream.ctc``."""
