"""Processes without their start: children forked from this one, which has imported all libraries already."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import IO, Any


class Forked:
    """What runs `python -m cvxrl ...` in a process of its own, with what `subprocess.Popen` offers of that."""

    def __init__(
        self, command: Sequence[str], *, stdout: IO[bytes], stderr: IO[bytes], env: Mapping[str, str], **_: Any
    ) -> None:
        assert list(command[:3]) == [sys.executable, "-m", "cvxrl"], command
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(_run(command[3:], stdout.fileno(), stderr.fileno(), env))

    def poll(self) -> int | None:
        """Exit code, or minus the signal; None while it runs."""
        return self._ask(os.WNOHANG)

    def wait(self) -> int | None:
        """The same at its end."""
        return self._ask(0)

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def _ask(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode


def _run(arguments: Sequence[str], out: int, err: int, env: Mapping[str, str]) -> int:
    """The child; returns its exit code."""
    from cvxrl.cli import main

    try:
        os.setsid()
        os.dup2(out, 1)
        os.dup2(err, 2)
        # A child of such a child must not close the descriptors with the streams that it replaces.
        sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
        os.environ.clear()
        os.environ.update(env)
        sys.argv = ["cvxrl", *arguments]
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code
