"""The version, in one place: setup.py, the package and every written file read it here."""

__version__ = "0.1.0"
