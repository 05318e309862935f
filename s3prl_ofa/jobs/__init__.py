"""Processes that run in parallel: started by a command on this machine (slots.py) or on a cluster (slurm.py), or by a
launcher (launched.py)."""
