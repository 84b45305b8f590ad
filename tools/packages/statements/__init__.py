"""Counts the statements of product, tests and tools, without docstrings, comments and blank lines."""
