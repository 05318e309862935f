"""Sweeps: rates x tasks x seeds, resumable, with tables and plots at the end.

job.py      a point: its settings, the name of its folder and its row
results.py  what is on the disk: the points' folders, and ``results.jsonl``, collected from them
grid/       what a grid file may hold, and the points it describes
run/        ``s3prl-ofa sweep``: the points of a grid, each in a process of its own
report/     ``s3prl-ofa report``: tables, plots and a page from the results
"""
