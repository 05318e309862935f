"""Where the folders lie that S3PRL's users look for at the top level: ``upstream`` and ``downstream_configs``."""

import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parent


def folder(name: str) -> pathlib.Path:
    """The folder ``name``: inside the package where it was installed, beside the package in a checkout.

    Raises FileNotFoundError when it is in neither place.
    """
    for parent in (PACKAGE, PACKAGE.parent):
        if (parent / name).is_dir():
            return parent / name
    raise FileNotFoundError(f"the folder {name} is neither in {PACKAGE} nor beside it: the installation is incomplete")
