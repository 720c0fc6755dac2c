"""Completions per second with the next rollout made beside the updates (`rollout.ahead`), and without, side by side.

The same recipe three ways, each in a process of its own, in alternating rounds: with two threads, the way it would run
by default on two cores; with one; and ahead, one thread for the rollout and one for the updates. Needs a machine
with two idle cores: on a busy one, two threads also get twice the share of one.

    python benchmarks/ahead.py --recipe math_grpo --steps 20 --rounds 3
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from cvxrl.engine.trainer import Trainer
from cvxrl.recipe.load import load_recipe

# Threads of torch, and whether rollouts are made ahead.
WAYS = {"two threads": (2, False), "one thread": (1, False), "ahead, one thread each": (1, True)}
WARMUP = 2


def measure(recipe: str, ahead: bool, steps: int) -> tuple[float, float]:
    """Completions per second and processor seconds per step, after a few steps of warm-up."""
    changes = ["eval.every=0", "rollout.lag=1", f"rollout.ahead={str(ahead).lower()}"]
    loaded = load_recipe(recipe, changes)
    trainer = Trainer.build(loaded)
    for step in range(1, WARMUP + 1):
        trainer._step(step)
    wall, cpu = time.perf_counter(), time.process_time()
    for step in range(WARMUP + 1, WARMUP + steps + 1):
        trainer._step(step)
    seconds = time.perf_counter() - wall
    return steps * loaded.sequences_per_step / seconds, (time.process_time() - cpu) / steps


def in_a_process(recipe: str, way: str, steps: int) -> tuple[float, float]:
    """The same with the threads of a way."""
    threads, ahead = WAYS[way]
    command = [sys.executable, __file__, "--recipe", recipe, "--steps", str(steps), "--child", str(int(ahead))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    rate, cpu = map(float, done.stdout.split()[-2:])
    return rate, cpu


def main() -> None:
    """Print a line a way: medians over rounds, and ratios to two threads within a round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="math_grpo")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=int, choices=(0, 1), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child is not None:
        print(*measure(asked.recipe, bool(asked.child), asked.steps))
        return
    rounds = [{way: in_a_process(asked.recipe, way, asked.steps) for way in WAYS} for _ in range(asked.rounds)]
    load = os.getloadavg()[0]
    print(f"{asked.recipe}, {asked.steps} steps a round, load of the machine at the end {load:.1f}")
    for way in WAYS:
        rate, cpu = (statistics.median(found[way][i] for found in rounds) for i in range(2))
        ratio = statistics.median(found[way][0] / found["two threads"][0] for found in rounds)
        print(f"{way:24s} {rate:7.1f} completions/s  {ratio:5.2f} of two threads  {cpu:6.3f} processor s a step")


if __name__ == "__main__":
    main()
