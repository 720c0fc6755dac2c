"""One module per command: parse, call, render, exit code. Heavy imports wait until a command runs."""
