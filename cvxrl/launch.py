"""`python -m cvxrl.launch [OPTIONS OF TORCHRUN] train RECIPE ...`: torchrun, with the exit code of the ranks.

Torchrun itself ends with 1 whatever its processes ended with, tells their failures a second time, and gives them 30
seconds after a Ctrl-C, in which a long step is not finished. Everything else is torchrun's own machinery and options.
"""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from typing import Final

from cvxrl.ranks import LAUNCHER

INTERRUPTED: Final = 130
LOST: Final = 137  # as a shell has it for a process that was killed
_SECONDS_TO_STOP = 10**7
# Signals of a process that is lost, not of one that is asked to end.
_LOST_BY: Final = tuple(-one for one in (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL))
_USAGE = """usage: python -m cvxrl.launch [OPTIONS OF TORCHRUN] COMMAND ...

  python -m cvxrl.launch --nproc-per-node 8 train math_grpo
  python -m cvxrl.launch --nnodes 4 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train R

Options: torchrun --help; commands: cvxrl --help."""


def launch(arguments: Sequence[str]) -> int:
    """Start the ranks, wait for them, and return their exit code.

    Args:
        arguments: options of torchrun, then those of `cvxrl`.
    """
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(_SECONDS_TO_STOP))
    import torch.distributed.run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # the ranks say themselves what went wrong
    options = torchrun.parse_args(list(arguments))  # type: ignore[no-untyped-call]
    command = [options.training_script, *options.training_script_args]
    os.environ[LAUNCHER] = shlex.join(["python", "-m", "cvxrl.launch", *arguments[: len(arguments) - len(command)]])
    options.training_script_args = command
    options.training_script, options.module = "cvxrl", True
    try:
        torchrun.run(options)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        code = exit_code(codes.values())
        # Nobody has told why where rank 0 is gone, or took the signal that torchrun ends it with for a Ctrl-C.
        if code == LOST and (codes.get(0, 0) < 0 or INTERRUPTED in codes.values()):
            lost = min((rank for rank, ended in codes.items() if ended < 0), default=0)
            print(f"error: rank {lost} was killed; go on with --resume", file=sys.stderr)
        return code
    except SignalException:
        return INTERRUPTED
    return 0


def exit_code(codes: Iterable[int]) -> int:
    """One exit code for the processes that failed: they agree on it, but those that a signal ended.

    When a rank is lost, torchrun ends the others by SIGTERM. One that it reaches on its way out, with the loss not told
    yet, leaves as if interrupted, which it is not.

    Args:
        codes: of each; a negative one is the signal.
    """
    codes = list(codes)
    own = [code for code in codes if code > 0]
    if any(code in _LOST_BY for code in codes):
        own = [code for code in own if code != INTERRUPTED]
    return own[0] if own else LOST


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(_USAGE)
        sys.exit(0 if len(sys.argv) > 1 else 2)
    sys.exit(launch(sys.argv[1:]))
