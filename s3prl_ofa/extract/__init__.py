"""Features of many audio files to disk: ``s3prl-ofa extract``.

inputs.py finds the audio and names the outputs, writers.py writes one utterance in a chosen format, store.py remembers
in the output folder what is finished and with which settings, command.py does the work.
"""
