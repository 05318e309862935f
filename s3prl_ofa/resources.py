"""Finds the files that come with the package; ``upstream`` and ``downstream_configs`` are at the top level."""

import pathlib

PACKAGE = pathlib.Path(__file__).resolve().parent
AUDIO = PACKAGE / "demo" / "audio"  # synthetic speech, laid out as VoxCeleb1


def folder(name: str) -> pathlib.Path:
    """The folder ``name``: inside the package if it was installed, beside it in a checkout.

    Raises FileNotFoundError if it is in neither place.
    """
    for parent in (PACKAGE, PACKAGE.parent):
        if (parent / name).is_dir():
            return parent / name
    raise FileNotFoundError(
        f"the folder {name} is neither in {PACKAGE} nor beside it: the installation is incomplete; install it again"
    )
