"""Runs on two ranks, started as a user starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from helpers import cut

TRAIN = ("train.steps=3", "eval.every=0", "checkpoint.every=1", "placement.timeout=20")


def settings(*overrides: str) -> list[str]:
    return [word for override in cut("math_grpo", *TRAIN, *overrides) for word in ("--set", override)]


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "math_grpo" / "seed-0" / "run.json").read_text())
    return found


class Launched:
    """`python -m cvxrl.launch` with two ranks, in a process of its own."""

    def __init__(self, folder: Path, *overrides: str, entry: str = "", ranks: int = 2, **options: Any) -> None:
        self.folder, self.said = folder, folder / "said.txt"
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "cvxrl.launch", "--nproc-per-node", str(ranks), "train", "math_grpo"]
        command += ["--out", str(folder), *settings(*overrides), *([entry] if entry else [])]
        paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        with (folder / "out.txt").open("wb") as out, self.said.open("wb") as err:
            self.process = subprocess.Popen(
                command, stdout=out, stderr=err, env=os.environ | {"PYTHONPATH": paths}, **options
            )

    @property
    def metrics(self) -> Path:
        return self.folder / "math_grpo" / "seed-0" / "metrics.jsonl"

    @property
    def steps(self) -> int:
        """Recorded so far."""
        return self.metrics.read_text().count("\n") if self.metrics.is_file() else 0

    def after_step(self, step: int) -> None:
        until = time.monotonic() + 600
        while self.steps < step:
            assert time.monotonic() < until and self.process.poll() is None, self.said.read_text()
            time.sleep(0.05)

    def wait(self, seconds: float) -> None:
        """So long, or until it has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            time.sleep(0.02)

    def end(self) -> int:
        return self.process.wait(timeout=900)

    def pid_of(self, rank: int) -> int:
        """Of a rank, which the launcher has started."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                    if parent == self.process.pid and f"\0RANK={rank}\0" in (entry / "environ").read_text():
                        return int(entry.name)
                except OSError:
                    continue
        raise AssertionError(f"there is no rank {rank}")
