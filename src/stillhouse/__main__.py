"""`python -m stillhouse`: the command line."""

from stillhouse.cli import main

main()
