"""What a line search adds to a step: fixed and searched ones in turn, on a policy of SmolLM2-135M's size.

Both trainers live in one process and take their steps in turn, so that a busy machine slows them alike; each goes its
own way from the same weights. The first searched step, which finds the length, is left out and told apart.

    python benchmarks/searched_steps.py --model DIR --every 1 4 --steps 5    # DIR: SmolLM2-135M-Instruct, saved
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from cvxrl.engine.trainer import Trainer
from cvxrl.recipe.load import load_recipe

FIXED = "fixed"


class Side:
    """A trainer and the time and the tried shares of its steps."""

    def __init__(self, model: str, control: str, completions: int) -> None:
        """Build it from SmolLM2's recipe, its evaluations and checks left out."""
        changes = [f"model.path={model}", f"rollout.prompts={completions // 8}", "rollout.samples=8", "eval.every=0"]
        changes += ["train.check_every=0", "rollout.max_new_tokens=32", f"step={control}"]
        self.trainer = Trainer.build(load_recipe("smollm2_lco_kld", changes))
        self.seconds: list[float] = []
        self.tried: list[float] = []

    def step(self, number: int) -> None:
        """Take one."""
        start = time.perf_counter()
        record = self.trainer._step(number)
        self.seconds.append(time.perf_counter() - start)
        self.tried.append(float(record.get("step/evaluations", 0.0)))


def main() -> None:
    """Print, of every N, the time of a searched step over that of a fixed one, and the shares tried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="directory with SmolLM2-135M-Instruct, or a model of its size")
    parser.add_argument("--every", type=int, nargs="+", default=[1, 4], help="values of step.every")
    parser.add_argument("--steps", type=int, default=9, help="in turn, after the first")
    parser.add_argument("--completions", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    controls = {f"every {n}": f"{{kind: line-search, every: {n}}}" for n in asked.every}
    ways = {
        name: Side(asked.model, control, asked.completions)
        for name, control in ({FIXED: "{kind: fixed}"} | controls).items()
    }
    for number in range(1, asked.steps + 2):
        for way in ways.values():
            way.step(number)
    fixed = ways.pop(FIXED).seconds
    print(f"a fixed step: {statistics.median(fixed[1:]):.2f} s, median of {asked.steps}")
    for name, way in ways.items():
        ratio = sum(way.seconds[1:]) / sum(fixed[1:])
        print(
            f"{name}: {ratio:.2f} of the fixed steps' time, {statistics.mean(way.tried[1:]):.2f} shares tried a step; "
            f"in the first step {way.tried[0]:.0f}, {way.seconds[0] / fixed[0]:.1f} of its time"
        )


if __name__ == "__main__":
    main()
