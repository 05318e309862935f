"""Features of many audio files, written to disk: ``s3prl-ofa extract``.

inputs.py finds the audio and names the outputs, writers.py writes an utterance in the chosen format, store.py records
in the output folder what is finished, and extraction.py does the work with the threads of pipeline.py. command.py is
the command; shards.py divides the work among processes, which run shard.py.
"""
