"""What a shell script can act on."""

DONE = 0
BUG = 1
USER_ERROR = 2
GATE_NOT_MET = 3
DIVERGED = 4
INTERRUPTED = 130
