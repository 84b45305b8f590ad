"""`python -m mutants`."""

from mutants.command import main

main()
