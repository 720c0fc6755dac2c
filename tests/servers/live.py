"""A real vLLM server on the CPU, started as a user would start one, in the environment of `make_env.sh`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from helpers import ROOT

# On a machine with two busy cores the imports of vLLM's processes alone take a minute or two each.
_STARTUP = 900
ENVIRONMENT = os.environ.get("CVXRL_VLLM_ENV", "")
PYTHON = Path(ENVIRONMENT) / "bin" / "python"
MISSING = "no environment with vLLM: tests/servers/make_env.sh FOLDER makes one, CVXRL_VLLM_ENV=FOLDER names it"


def is_there() -> bool:
    """Whether the environment has been made."""
    return bool(ENVIRONMENT) and PYTHON.is_file()


class LiveServer:
    """`python -m cvxrl.serve` on a free port.

    Attributes:
        url: where it listens.
        log: what it says.
    """

    def __init__(self, policy: str, log: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url, self.log, self._policy, self._options = f"http://127.0.0.1:{self.port}", log, policy, options
        self.start()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = [str(PYTHON), "-m", "cvxrl.serve", self._policy, "--port", str(self.port)]
        # Nothing is compiled, and one process fewer is started: what is tested is the same.
        command += ["--enforce-eager", "--distributed-executor-backend", "uni", "--memory", "0.1", *self._options]
        environment = {k: v for k, v in os.environ.items() if k != "VIRTUAL_ENV"}
        # This checkout, whichever one the environment was made of.
        environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd="/", start_new_session=True
            )
        end = time.monotonic() + _STARTUP
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > end:
                self.kill()
                raise RuntimeError(f"the server did not start:\n{self.log.read_text(errors='replace')[-3000:]}")
            time.sleep(1)

    def answers(self) -> bool:
        """Whether it listens."""
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as response:
                return bool(response.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """End it and all its processes at once; they are a group of their own."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.process.wait()

    def __enter__(self) -> LiveServer:
        return self

    def __exit__(self, *_: Any) -> None:
        self.kill()
