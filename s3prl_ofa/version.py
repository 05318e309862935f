"""The version: setup.py, the package and every file that is written take it from here."""

__version__ = "0.1.0"
