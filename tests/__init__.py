"""The tests. A package, so that ``python -m tests.hostile`` finds these and not a package ``tests`` of some library."""
