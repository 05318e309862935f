"""Finds the folders that are at the top level for S3PRL's users: ``upstream`` and ``downstream_configs``."""

import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parent


def folder(name: str) -> pathlib.Path:
    """The folder ``name``: inside the package if it was installed, beside it in a checkout.

    Raises FileNotFoundError if it is in neither place.
    """
    for parent in (PACKAGE, PACKAGE.parent):
        if (parent / name).is_dir():
            return parent / name
    raise FileNotFoundError(f"the folder {name} is neither in {PACKAGE} nor beside it: the installation is incomplete")
