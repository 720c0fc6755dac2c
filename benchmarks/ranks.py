"""Completions per second of two ranks against one process with two threads, and with one: `python benchmarks/ranks.py`.

The same recipe (math_grpo, on the embedded policy) in all, by turns, so that what else the machine does hits them
alike. Without the time that a process takes to start; evaluations and checkpoints are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

FIRST = 2  # steps in which caches are filled and checks are made


def seconds_per_step(command: list[str], threads: int, prompts: int, steps: int) -> float:
    """Median time of a step after the first ones."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            f"rollout.prompts={prompts}",
            f"train.steps={steps}",
            "eval.every=0",
            "checkpoint.final=false",
            "train.check_every=0",
        ]
        options = [word for setting in settings for word in ("--set", setting)]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        train = [sys.executable, *command, "train", "math_grpo", "--out", folder, *options]
        subprocess.run(train, check=True, env=environment, stdout=subprocess.DEVNULL)
        records = Path(folder, "math_grpo", "seed-0", "metrics.jsonl").read_text().splitlines()
    return statistics.median(json.loads(record)["time/step_s"] for record in records[FIRST:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=16, help="of a step, 8 completions each")
    given = parser.parse_args()
    kinds = {
        "one process, two threads": (["-m", "cvxrl"], 2),
        "one process, one thread": (["-m", "cvxrl"], 1),
        "two ranks, one thread each": (["-m", "cvxrl.launch", "--nproc-per-node", "2"], 1),
    }
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(given.rounds):
        for name, (command, threads) in kinds.items():
            found[name].append(seconds_per_step(command, threads, given.prompts, given.steps))
    completions = given.prompts * 8
    for name, seconds in found.items():
        print(f"{name}: {completions / statistics.median(seconds):.1f} completions/s {[f'{s:.2f}' for s in seconds]}")
    *ones, two = found
    for one in ones:
        ratios = [f"{a / b:.2f}" for a, b in zip(found[one], found[two], strict=True)]
        print(f"{two} over {one}, round by round: {ratios}")


if __name__ == "__main__":
    main()
