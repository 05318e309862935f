"""Sweeps: rates x tasks x seeds, resumable, with a table and plots at the end.

grid/     what a grid file may hold, and whether it can be run
run/      ``s3prl-ofa sweep``: the points of a grid, each in a process of its own
report/   ``s3prl-ofa report``: tables, plots and a page from the results
"""
