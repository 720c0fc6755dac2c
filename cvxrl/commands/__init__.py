"""One module per command: parse, call, render, exit code. Heavy imports wait until a command runs."""

from typing import Final

# Exit codes: what a shell script can act on.
DONE: Final = 0
BUG: Final = 1
USER_ERROR: Final = 2
GATE_NOT_MET: Final = 3
DIVERGED: Final = 4
INTERRUPTED: Final = 130
