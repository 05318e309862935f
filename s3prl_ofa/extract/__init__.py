"""Features of many audio files, written to disk: ``s3prl-ofa extract``.

inputs.py finds the audio and names the outputs, writers.py writes an utterance in a chosen format, store.py records in
the output folder what is finished, and extraction.py does the work, with pipeline.py's threads. command.py is the
command; shards.py divides the work among processes, whose program is shard.py.
"""
