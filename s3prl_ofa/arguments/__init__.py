"""What each command of ``s3prl-ofa`` takes, a module per command, with nothing heavy imported: help is immediate.

parser.py is the parser that all commands share. What a command does is in its room.
"""
