"""Mutation tests: one line of the scheduler is changed in a copy, and a test that is named for it has to fail."""
