"""The tests of the package, and their helpers."""
