"""The arguments of each ``s3prl-ofa`` command, one module per command. Nothing heavy is imported: help is immediate.

parser.py is the parser that all commands share. The commands themselves are in their own packages.
"""
