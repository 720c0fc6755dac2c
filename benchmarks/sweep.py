"""Throughput of `cvxrl compare --jobs N` against `--jobs 1` over the same small runs.

Two rows: `--jobs 1` with one thread a run, as `compare` gives it, and with a thread a core, which is the most that one
run at a time can take. The runs must come out the same to the bit, whatever --jobs says.

    python benchmarks/sweep.py
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
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def sweep(arguments: argparse.Namespace, jobs: int, threads: int) -> tuple[float, float, list[bytes]]:
    """Wall and processor seconds, and the trained weights seed by seed."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "cvxrl", "compare", "recipes/math_grpo.yaml", "--out", folder]
        command += ["--seeds", f"0-{arguments.seeds - 1}", "--jobs", str(jobs), "--threads", str(threads)]
        command += ["--set", f"train.steps={arguments.steps}", "--set", "eval.every=0", "--metric", "reward/mean"]
        before, start = os.times(), time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        seconds, after = time.perf_counter() - start, os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        runs = sorted(Path(folder).glob("*/seed-*/policy/model.safetensors"))
        return seconds, used, [file.read_bytes() for file in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    cases = {"one thread": (1, 1), "a thread a core": (1, cores), "jobs": (cores, 1)}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    weights: dict[str, list[bytes]] = {}
    for _ in range(arguments.rounds):
        for name, case in cases.items():
            seconds, used, weights[name] = sweep(arguments, *case)
            found[name].append((seconds, used))
            print(f"{name}: {seconds:.1f} s", file=sys.stderr)
    wall = {name: statistics.median(s for s, _ in runs) for name, runs in found.items()}
    busy = {name: statistics.median(used / (cores * s) for s, used in runs) for name, runs in found.items()}
    same = weights["one thread"] == weights["jobs"] and len(weights["jobs"]) == arguments.seeds
    report = {
        "cores": cores,
        "runs": arguments.seeds,
        "throughput_of_one_thread": wall["one thread"] / wall["jobs"],
        "throughput_of_a_thread_a_core": wall["a thread a core"] / wall["jobs"],
        "busy": busy,
        "bit_identical": same,
    }
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"{arguments.seeds} runs of {arguments.steps} steps, medians of {arguments.rounds} rounds in alternation")
    print(f"throughput of --jobs {cores}, of --jobs 1, one thread: {report['throughput_of_one_thread']:.2f}")
    print(f"throughput of --jobs {cores}, of --jobs 1, a thread a core: {report['throughput_of_a_thread_a_core']:.2f}")
    print("cores busy: " + ", ".join(f"{name} {share:.0%}" for name, share in busy.items()))
    print(f"trained weights of --jobs {cores} and --jobs 1 bit for bit the same: {same}")


if __name__ == "__main__":
    main()
