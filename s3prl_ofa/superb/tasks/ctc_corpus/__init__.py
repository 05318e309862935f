"""The folder that ``register.add_corpora`` adds to the path of ``s3prl.downstream.ctc``, for the ``corpus`` in it."""
