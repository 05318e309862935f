"""Processes that a command starts, several at a time: slots.py on this machine, slurm.py on a cluster."""
