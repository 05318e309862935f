"""Sweeps: rates x tasks x seeds, resumable, with tables and plots at the end.

job.py      a point: its settings, its folder and its row
results.py  ``results.jsonl``, collected from the points
grid/       what a grid file may hold, and whether it can be run
run/        ``s3prl-ofa sweep``: the points of a grid, each in a process of its own
report/     ``s3prl-ofa report``: tables, plots and a page from the results
"""
