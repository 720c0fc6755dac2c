"""The forward pass written out for plain decoders against the model's own, side by side: training pass and sampling.

CPU seconds of one thread, the ways in alternation in one process, the smallest of a few rounds: a figure that other
programs on the machine disturb little. Memory is the peak of a training pass in a process of its own, above what was
in use before it.

    python benchmarks/forward_paths.py --prompts 16
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cvxrl.engine.trainer import Trainer
from cvxrl.policy.forward import packed_rows
from cvxrl.policy.rows import shared_prompts, whole_rows
from cvxrl.recipe.load import load_recipe
from cvxrl.rollout.generator import Sampling
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.rollout.randomness import completion_keys

ROOT = Path(__file__).resolve().parents[1]
WAYS = {"packed": packed_rows, "shared": shared_prompts, "whole": whole_rows}


class Work:
    """One experience of the embedded policy and what can be done with it."""

    def __init__(self, prompts: int, samples: int) -> None:
        """Sample it."""
        changes = [f"rollout.prompts={prompts}", f"rollout.samples={samples}", "eval.every=0"]
        self.recipe = load_recipe(ROOT / "recipes" / "math_grpo.yaml", changes)
        trainer = Trainer.build(self.recipe)
        self.policy, self.sequences = trainer.policy, trainer.collector.collect(1).sequences

    def train(self, way: str) -> None:
        """Forward and backward pass over the sequences."""
        self.policy.model.zero_grad()
        hidden = WAYS[way](self.policy.model, self.sequences.prompts, self.sequences.responses)
        hidden.sum().backward()  # type: ignore[no-untyped-call]

    def sample(self, engine: Any) -> None:
        """Sample the sequences again."""
        rollout = self.recipe.rollout
        prompts = [list(p) for p in self.sequences.prompts[:: rollout.samples]]
        keys = completion_keys(0, "sampling", 1, prompts=range(len(prompts)), samples=rollout.samples)
        LocalGenerator(self.policy, engine).generate(
            prompts, keys, Sampling(rollout.max_new_tokens, rollout.temperature)
        )


def alternate(jobs: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Smallest CPU time of each job over rounds in alternation."""
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.process_time()
            job()
            seconds[name].append(time.process_time() - start)
    return {name: min(found) for name, found in seconds.items()}


def peak_mib(way: str, arguments: argparse.Namespace) -> float:
    """Peak of a training pass above what was in use before, in a process of its own."""
    command = [sys.executable, __file__, "--peak", way]
    command += ["--prompts", str(arguments.prompts), "--samples", str(arguments.samples)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.split()[-1])


def status_mib(key: str) -> float:
    """A figure of this process's memory."""
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) / 1024


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--peak", choices=list(WAYS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work = Work(arguments.prompts, arguments.samples)
    if arguments.peak:
        before = status_mib("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        work.train(arguments.peak)
        print(status_mib("VmHWM") - before)
        return
    train = alternate({way: lambda way=way: work.train(way) for way in WAYS}, arguments.rounds)  # type: ignore[misc]
    engines = ("auto", "transformers")
    sample = alternate({e: lambda e=e: work.sample(e) for e in engines}, arguments.rounds)  # type: ignore[misc]
    peak = {way: peak_mib(way, arguments) for way in WAYS}
    report = {
        "train_time": {way: train["packed"] / train[way] for way in WAYS},
        "train_memory": {way: peak["packed"] / peak[way] for way in WAYS},
        "sample_time": {engine: sample["auto"] / sample[engine] for engine in engines},
    }
    if arguments.json:
        print(json.dumps(report))
        return
    for name, ratios in report.items():
        print(f"{name:13}" + ", ".join(f"/ {other}: {ratio:.2f}" for other, ratio in ratios.items() if ratio != 1))


if __name__ == "__main__":
    main()
