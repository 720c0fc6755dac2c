"""How long a user waits: for `--help`, for `train --dry-run`, and from the command to the first training step.

python benchmarks/startup.py
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "recipes/math_grpo.yaml"
TARGETS = {"help": 0.5, "dry-run": 1.0, "first step": 10.0}
_POLL_S = 0.02
# As an installed package has it: compiled once, and not at every start.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cvxrl", *arguments]


def children_s() -> float:
    """Processor seconds of the children that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def whole(*arguments: str) -> Callable[[], tuple[float, float]]:
    """Wall and processor seconds of a whole command."""

    def run() -> tuple[float, float]:
        before, start = children_s(), time.perf_counter()
        subprocess.run(command(*arguments), check=True, stdout=subprocess.DEVNULL, cwd=ROOT, env=ENVIRONMENT)
        return time.perf_counter() - start, children_s() - before

    return run


def first_step() -> tuple[float, float]:
    """Until the first training step is on disk, the evaluation before training included, the one after it not."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["train", RECIPE, "--out", folder, "--set", "train.steps=2", "--set", "optim.warmup_steps=0"]
        before, start = children_s(), time.perf_counter()
        process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL, cwd=ROOT, env=ENVIRONMENT)
        metrics = Path(folder) / "math_grpo" / "seed-0" / "metrics.jsonl"
        while process.poll() is None and not (metrics.is_file() and '"step": 1' in metrics.read_text()):
            time.sleep(_POLL_S)
        seconds = time.perf_counter() - start
        assert process.poll() is None
        process.kill()
        process.wait()
        return seconds, children_s() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    cases = {"help": whole("--help"), "dry-run": whole("train", RECIPE, "--dry-run"), "first step": first_step}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for round_ in range(arguments.rounds + 1):
        for name, run in cases.items():
            times = run()
            if round_:  # the first one compiles
                found[name].append(times)
    rows = [
        {
            "case": name,
            "seconds": statistics.median(wall for wall, _ in runs),
            "cpu_seconds": statistics.median(cpu for _, cpu in runs),
            "target": TARGETS[name],
        }
        for name, runs in found.items()
    ]
    if arguments.json:
        print(json.dumps(rows))
        return
    print(f"{'command':11} {'wall s':>7} {'cpu s':>7} {'target':>7}   medians of {arguments.rounds}")
    for row in rows:
        print(f"{row['case']:11} {row['seconds']:7.2f} {row['cpu_seconds']:7.2f} {row['target']:7.1f}")


if __name__ == "__main__":
    main()
