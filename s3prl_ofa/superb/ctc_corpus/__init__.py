"""The folder that ``tasks.complete_s3prl`` adds to the path of ``s3prl.downstream.ctc``, for the ``corpus`` in it."""
