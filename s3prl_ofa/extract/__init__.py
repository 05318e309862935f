"""Features of many audio files, written to disk: ``s3prl-ofa extract``.

inputs.py finds the audio and names the outputs, writers.py writes an utterance in a chosen format, store.py records in
the output folder what is finished, and command.py does the work.
"""
