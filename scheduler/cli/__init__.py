"""The command line: `scheduler` and `python -m scheduler`. Nobody imports it; rich only here."""

from scheduler.cli.main import main

__all__ = ["main"]
