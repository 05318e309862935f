"""The version, which setup.py, the package and all files that it writes take from here."""

__version__ = "0.1.0"
