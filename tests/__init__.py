"""The tests of the package, and what helps them."""
