"""Sweeps: rates x tasks x seeds, resumable, with a table and plots at the end.

grid.py, reading.py   what a grid file may say          check.py    whether it can be run, before anything is
command.py            s3prl-ofa sweep                   launch.py   who runs the points: submitit
layout.py             whether it fits what was run      point.py, work.py   one point, in its own process
folder.py, results.py, provenance.py                    what is written where
report.py             s3prl-ofa report                  summary.py, tables.py, plots.py, page.py   its parts
"""
