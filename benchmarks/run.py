"""Every benchmark in one table: cvxrl, the peer, the floor that the hardware sets, and the ratio to each.

The peer of a training step is TRL's GRPOTrainer (benchmarks/train_step.py); that of a loss is the plain path over full
logits, and on CUDA also Liger's (benchmarks/loss_memory.py). The floor is computed: operations over the measured rate
of matrix products, plus bytes over the measured bandwidth of memory. Absolute seconds belong to one machine; the ratios
are what to compare. `--out` keeps them with the commit and the versions, `--against` compares with such a file.

    python benchmarks/run.py --out new.json
    python benchmarks/run.py --case step-16x8 --case loss-grpo --against old.json
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

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
STEPS = {"step-16x8": ["--prompts", "16"], "step-64x8": ["--prompts", "64"]}
LOSSES = ["lco-kld", "grpo", "lco-mse"]
LOSS_SIZES = {"tokens": 1024, "vocab": 151_936, "hidden": 896}
SAMPLES = 8


def call(script: str, *arguments: str) -> Any:
    """JSON that a benchmark prints."""
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return json.loads(done.stdout)


def best(run: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest of several runs: a rate is what the machine can do, not what it did."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def machine_rates() -> dict[str, float]:
    """Operations per second of fp32 matrix products, and bytes per second read and written, of this machine now."""
    import torch

    size, length = 2048, 64 * 2**20
    left, right = torch.randn(size, size), torch.randn(size, size)
    source, target = torch.randn(length), torch.empty(length)
    return {
        "flops": 2 * size**3 / best(lambda: left @ right),
        "bytes_per_s": 2 * 4 * length / best(lambda: target.copy_(source)),
    }


def step_floor(prompts: int, rates: dict[str, float]) -> float:
    """Floor of a step on the embedded policy, all completions at full length.

    Every weight takes two operations per token to sample with, six to train with (forward, and a gradient of inputs and
    of weights). Sampling reads the weights once per token position; training reads and writes weights, gradients and
    both moments once.
    """
    from cvxrl.engine.shape import shape_of
    from cvxrl.recipe.load import load_recipe

    recipe = load_recipe(ROOT / "recipes" / "math_grpo.yaml")
    shape = shape_of(recipe.model)
    assert shape is not None
    length = recipe.rollout.max_new_tokens
    operations = 8 * shape.parameters * prompts * SAMPLES * length
    moved = 4 * shape.parameters * (length + 2 * 4)
    return operations / rates["flops"] + moved / rates["bytes_per_s"]


def step(name: str, rates: dict[str, float], rounds: int) -> Row:
    report = call("train_step.py", *STEPS[name], "--rounds", str(rounds))
    seconds, peak = report["seconds"], report["peak_mib"]
    floor = step_floor(int(STEPS[name][1]), rates)
    return {
        "case": name,
        "peer": "trl",
        "seconds": seconds["cvxrl"],
        "peer_seconds": seconds["trl"],
        "floor_seconds": floor,
        "cpu_seconds": report["cpu_seconds"]["cvxrl"],
        "peak_mib": peak["cvxrl"],
        "of_peer": report["time_ratio"],
        "of_floor": seconds["cvxrl"] / floor,
        "memory_of_peer": report["memory_ratio"],
    }


def loss(name: str, rates: dict[str, float], rounds: int) -> Row:
    """The floor is three matrix products of T x V x H, none for a loss that reads rows of the matrix."""
    objective = name.removeprefix("loss-")
    sizes = [text for key, value in LOSS_SIZES.items() for text in (f"--{key}", str(value))]
    (report,) = call("loss_memory.py", "--objective", objective, *sizes, "--rounds", str(rounds))
    products = 0 if objective == "lco-mse" else 3
    operations = products * 2 * report["tokens"] * LOSS_SIZES["vocab"] * LOSS_SIZES["hidden"]
    # The gradient of the matrix is written once, whatever the loss.
    floor = operations / rates["flops"] + 4 * LOSS_SIZES["vocab"] * LOSS_SIZES["hidden"] / rates["bytes_per_s"]
    return {
        "case": name,
        "peer": "full logits",
        "seconds": report["linear_s"],
        "peer_seconds": report["plain_s"],
        "floor_seconds": floor,
        "cpu_seconds": report["linear_cpu_s"],
        "peak_mib": report["linear_mib"],
        "of_peer": report["time_ratio"],
        "of_floor": report["linear_s"] / floor,
        "memory_of_peer": report["memory_ratio"],
        "of_liger": report["liger_ratio"],
    }


def provenance() -> dict[str, Any]:
    """Commit, versions and machine."""
    import torch

    from cvxrl.runs.provenance import collect_provenance

    found: dict[str, Any] = collect_provenance("cpu", torch.get_num_threads()).model_dump()
    return found


def show(rows: list[Row]) -> None:
    print(f"{'case':14} {'peer':12} {'s':>8} {'peer s':>8} {'floor s':>8} {'cpu s':>7} {'MiB':>7}", end="")
    print(f" {'of peer':>8} {'of floor':>8} {'memory of peer':>14}")
    for row in rows:
        print(f"{row['case']:14} {row['peer']:12} {row['seconds']:8.3f} {row['peer_seconds']:8.3f}", end="")
        print(f" {row['floor_seconds']:8.3f} {row['cpu_seconds']:7.3f} {row['peak_mib']:7.0f}", end="")
        print(f" {row['of_peer']:8.2f} {row['of_floor']:8.2f} {row['memory_of_peer']:14.3f}")


def show_change(old: dict[str, Any], new: dict[str, Any]) -> None:
    """The ratios of two files, case by case: those to peer and floor hold across machines, seconds do not."""
    same = old["provenance"]["machine"] == new["provenance"]["machine"]
    print(f"\nagainst {old['provenance']['commit'] or 'an unknown commit'}", end="")
    print("" if same else " on another machine")
    before = {row["case"]: row for row in old["rows"]}
    for row in new["rows"]:
        then = before.get(row["case"])
        if then is None:
            print(f"{row['case']:14} is new")
            continue
        changes = (f"{key} {then[key]:.3f} -> {row[key]:.3f}" for key in ("of_peer", "of_floor", "memory_of_peer"))
        print(f"{row['case']:14} " + ", ".join(changes))


def main() -> None:
    cases = [*STEPS, *(f"loss-{name}" for name in LOSSES)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", action="append", choices=cases, help="may be repeated; all if none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keep the numbers in a JSON file")
    parser.add_argument("--against", type=Path, help="compare with such a file")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    rates = machine_rates()
    rows = []
    for name in arguments.case or cases:
        rows.append((step if name in STEPS else loss)(name, rates, arguments.rounds))
        print(f"{name}: done", file=sys.stderr)
    report = {"provenance": provenance(), "rates": rates, "rows": rows}
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1))
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"matrix products {rates['flops'] / 1e9:.0f} GFLOP/s, memory {rates['bytes_per_s'] / 1e9:.1f} GB/s")
    show(rows)
    if arguments.against:
        show_change(json.loads(arguments.against.read_text()), report)


if __name__ == "__main__":
    main()
