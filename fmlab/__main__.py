"""`python -m fmlab` is the command line of the lab."""

from fmlab.cli import main

main()
