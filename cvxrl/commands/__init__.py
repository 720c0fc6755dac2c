"""One module per command: parse, call, render, exit code. Heavy imports wait until a command runs."""

import os
import shlex
import sys
from typing import Final

from cvxrl.ranks import LAUNCHER, this_rank
from cvxrl.report.stream import write_out

# Exit codes: what a shell script can act on.
DONE: Final = 0
BUG: Final = 1
USER_ERROR: Final = 2
GATE_NOT_MET: Final = 3
DIVERGED: Final = 4
INTERRUPTED: Final = 130
LOST: Final = 137


def complain(text: str) -> None:
    """A line on stderr; one that nobody reads changes no exit code."""
    write_out(f"{text}\n", sys.stderr)


def command_to_go_on(*options: str) -> str:
    """This command line with further options, and without those that start again, as it can be pasted into a shell."""
    given = [word for word in sys.argv[1:] if word not in ("--overwrite", "--fresh")]
    program = "cvxrl" if this_rank() is None else os.environ.get(LAUNCHER, "torchrun ... -m cvxrl")
    return f"{program} {shlex.join([*given, *(option for option in options if option not in given)])}"
