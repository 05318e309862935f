"""The tests; a package, so that ``python -m tests.hostile`` finds this one and not one that a library installs."""
