"""A judge of test_rewards.py, in a module that imports next to nothing: a lost process imports it again."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from cvxrl.tasks.worker import Judge


def misbehave(options: dict[str, Any]) -> Judge:
    """A judge that does what it is told, to see whether the sandbox holds."""

    def judge(job: dict[str, Any]) -> float:
        match job["do"]:
            case "sleep":
                time.sleep(60)
            case "hold the interpreter":
                return float(len(str(7**200_000_000)))
            case "fill the memory":
                return float(len([bytearray(2**20) for _ in range(4096)]))
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail":
                raise KeyError("x")
            case "print":
                print("noise on stdout", flush=True)
            case "libraries":
                import cvxrl.tasks.judges  # noqa: F401

                return float(len({"torch", "numpy", "pydantic", "transformers"} & sys.modules.keys()))
        return float(os.getpid())

    return judge
