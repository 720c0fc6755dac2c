"""`python -m cvxrl`."""

from cvxrl.cli import main

main()
