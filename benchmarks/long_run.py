"""Does a long run leak? Resident memory, open files, threads and time of every step of one training run.

The run is the smoke recipe with few prompts, evaluations, checkpoints and their pruning included.
The first part, in which allocators fill their pools, is left out. Memory and time are averaged over blocks of steps, a
line is fitted through the blocks, and its slope is printed with its standard error: a leak is a slope that stands out
from it. Times are printed only as a ratio of the last block to the first.

    python benchmarks/long_run.py --steps 2000 --json long_run.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "smoke.yaml"
MIB = 2**20


# The process as a step ends; a row per step.
MEMORY, FILES, THREADS, SECONDS = range(4)


class Watch:
    """A sink that looks at its own process instead of showing the run."""

    def __init__(self, steps: int) -> None:
        """Print ten lines in all."""
        # Whole from the beginning: samples that pile up would be the leak that they are to find.
        self.samples = np.full((steps, 4), np.nan)
        self._every = max(1, steps // 10)

    def start(self, title: str, steps: int, done: int) -> None:
        """Nothing to prepare."""

    def step(self, record: Mapping[str, float]) -> None:
        """Take a sample, and say now and then that the run lives."""
        if record["step"] == 0:
            return
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory = pages * resource.getpagesize() / MIB
        files, threads = (len(os.listdir(f"/proc/self/{what}")) for what in ("fd", "task"))
        self.samples[int(record["step"]) - 1] = memory, files, threads, record["time/step_s"]
        if record["step"] % self._every == 0:
            print(f"step {int(record['step'])}: {memory:.1f} MiB, {files} files, {threads} threads", flush=True)

    def event(self, text: str) -> None:
        """Repeat it."""
        print(text, flush=True)

    def finish(self, status: str, rows: Sequence[Any]) -> None:
        """Say how it ended."""
        print(f"run {status}", flush=True)


def train(steps: int, overrides: Sequence[str]) -> np.ndarray:
    """Samples of every step of a run that is thrown away."""
    from cvxrl.engine.session import run_training
    from cvxrl.recipe.load import load_recipe
    from cvxrl.runs.directory import RunDir

    few = ["rollout.prompts=4", "rollout.samples=4", "eval.every=250", "checkpoint.every=100"]
    recipe = load_recipe(RECIPE, [*few, f"train.steps={steps}", *overrides])
    watch = Watch(steps)
    with tempfile.TemporaryDirectory() as folder:
        result = run_training(recipe, RunDir.of(Path(folder), recipe), watch, "new")
    if result.status != "finished":
        raise SystemExit(f"the run {result.status}")
    return watch.samples


def slope(values: Sequence[float]) -> tuple[float, float]:
    """Least-squares slope per position, and its standard error."""
    n, mean = len(values), statistics.fmean(values)
    middle = (n - 1) / 2
    spread = sum((i - middle) ** 2 for i in range(n))
    found = sum((i - middle) * (v - mean) for i, v in enumerate(values)) / spread
    rest = sum((v - mean - found * (i - middle)) ** 2 for i, v in enumerate(values))
    return found, math.sqrt(rest / (n - 2) / spread)


def report(samples: np.ndarray, warmup: int, block: int) -> dict[str, Any]:
    """Slopes per 1000 steps over blocks of steps, and the range of what must not change."""
    kept = samples[warmup:]
    blocks = [kept[i : i + block] for i in range(0, len(kept) - block + 1, block)]
    memory = [float(part[:, MEMORY].mean()) for part in blocks]
    times = [float(np.median(part[:, SECONDS])) for part in blocks]
    per_thousand = 1000 / block
    document: dict[str, Any] = {
        "steps": len(samples),
        "warmup": warmup,
        "block": block,
        "memory_mib": {"first": memory[0], "last": memory[-1], "all": memory},
        "open_files": sorted({int(n) for n in kept[:, FILES]}),
        "threads": sorted({int(n) for n in kept[:, THREADS]}),
    }
    for name, values in (("memory_mib", memory), ("step_time_share", [t / statistics.median(times) for t in times])):
        found, error = slope(values)
        document[f"{name}_per_1000_steps"] = {"slope": per_thousand * found, "standard_error": per_thousand * error}
    half = len(times) // 2
    document["step_time_second_half_to_first"] = statistics.median(times[half:]) / statistics.median(times[:half])
    return document


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--warmup", type=int, default=300, help="steps left out at the beginning")
    parser.add_argument("--block", type=int, default=50, help="steps per point of the fit")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a recipe key")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    arguments = parser.parse_args()
    if arguments.steps < arguments.warmup + 3 * arguments.block:
        parser.error("--steps must leave three blocks after --warmup")
    document = report(train(arguments.steps, arguments.set), arguments.warmup, arguments.block)
    if arguments.json:
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    memory, time = document["memory_mib_per_1000_steps"], document["step_time_share_per_1000_steps"]
    print(f"memory      {memory['slope']:+.2f} ± {memory['standard_error']:.2f} MiB per 1000 steps")
    print(f"open files  {' '.join(map(str, document['open_files']))}")
    print(f"threads     {' '.join(map(str, document['threads']))}")
    print(f"step time   {100 * time['slope']:+.1f} ± {100 * time['standard_error']:.1f} % per 1000 steps")
    print(f"            second half / first half {document['step_time_second_half_to_first']:.3f}")


if __name__ == "__main__":
    main()
