"""Every benchmark in one table: cvxrl, the peer, the floor that the hardware sets, and the ratio to each.

The peer of a training step, on the embedded policy and on a language model, is TRL's GRPOTrainer
(benchmarks/train_step.py); that of a loss is the plain path over full logits, and on CUDA also Liger's
(benchmarks/loss_memory.py). The floor is computed: operations over the measured rate
of matrix products, plus bytes over the measured bandwidth of memory. Absolute seconds belong to one machine; the ratios
are what to compare. `--out` keeps them with the commit and the versions, `--against` compares with such a file.

    python benchmarks/run.py --model PATH --out new.json
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
EMBEDDED = {"step-16x8": ["--prompts", "16"], "step-64x8": ["--prompts", "64", "--steps", "4", "--warmup", "1"]}
# A language model of 135 million parameters takes half a minute a step: one of two counts.
LANGUAGE = {"model-4x8": ["--prompts", "4", "--length", "32", "--micro-batch", "0", "--steps", "2", "--warmup", "1"]}
STEPS = EMBEDDED | LANGUAGE
LOSSES = ["lco-kld", "grpo", "lco-mse"]
LOSS_SIZES = {"tokens": 1024, "vocab": 151_936, "hidden": 896}


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


def step_floor(shape: Any, tokens: float, rates: dict[str, float]) -> float:
    """Floor of a step that samples and trains on so many response tokens; prompts are left out.

    Every weight of a matrix takes two operations per token to sample with, six to train with (forward, and a gradient
    of inputs and of weights). Training reads and writes weights, gradients and both moments once.
    """
    operations = 8 * shape.parameters * tokens
    moved = 4 * shape.parameters * 2 * 4
    return float(operations / rates["flops"] + moved / rates["bytes_per_s"])


def step(name: str, rates: dict[str, float], rounds: int, model: str) -> Row:
    from cvxrl.engine.sizes import shape_of
    from cvxrl.recipe.load import load_recipe

    arguments = STEPS[name]
    recipe = load_recipe(ROOT / "recipes" / "math_grpo.yaml", [f"model.path={model}"] if name in LANGUAGE else [])
    whose = ["--model", model] if name in LANGUAGE else []
    report = call("train_step.py", *arguments, *whose, "--rounds", str(rounds))
    floor = step_floor(shape_of(recipe.model), report["response_tokens"], rates)
    seconds, used, peak = report["seconds"], report["cpu_seconds"], report["peak_mib"]
    return {
        "case": name,
        "peer": "trl",
        "seconds": seconds["cvxrl"],
        "peer_seconds": seconds["trl"],
        "floor_seconds": floor,
        "cpu_seconds": used["cvxrl"],
        "peer_cpu_seconds": used["trl"],
        "peak_mib": peak["cvxrl"],
        "peer_peak_mib": peak["trl"],
        "of_peer": report["time_ratio"],
        "of_floor": seconds["cvxrl"] / floor,
        "cpu_of_peer": report["cpu_ratio"],
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
        "peer_cpu_seconds": report["plain_cpu_s"],
        "peak_mib": report["linear_mib"],
        "peer_peak_mib": report["plain_mib"],
        "of_peer": report["time_ratio"],
        "of_floor": report["linear_s"] / floor,
        "cpu_of_peer": report["linear_cpu_s"] / report["plain_cpu_s"],
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
    """Ours and the peer's seconds, processor seconds and MiB; then ratios, those to the peer in the same order."""
    print(f"{'':14} {'seconds':>13} {'processor s':>13} {'MiB':>13} {'ratio to the peer':>20} {'to the':>7}")
    print(f"{'case':14} {'ours':>6} {'peer':>6} {'ours':>6} {'peer':>6} {'ours':>6} {'peer':>6}", end="")
    print(f" {'time':>6} {'proc.':>6} {'MiB':>6} {'floor':>7}")
    for row in rows:
        print(f"{row['case']:14}", end="")
        for key in ("seconds", "cpu_seconds", "peak_mib"):
            for number in (row[key], row[f"peer_{key}"]):
                print(f" {number:6.3g}" if number < 1000 else f" {number:6.0f}", end="")
        print("".join(f" {row[key]:6.2f}" for key in ("of_peer", "cpu_of_peer", "memory_of_peer")), end="")
        print(f" {row['of_floor']:7.2f}")


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
        kept = ("of_peer", "cpu_of_peer", "memory_of_peer", "of_floor")
        changes = (f"{key} {then[key]:.3f} -> {row[key]:.3f}" for key in kept if key in then)
        print(f"{row['case']:14} " + ", ".join(changes))


def parser(cases: list[str]) -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", action="append", choices=cases, help="may be repeated; all that can run if none")
    parser.add_argument("--model", default="", help="directory of a language model, for the cases that want one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="keep the numbers in a JSON file, written anew after every case")
    parser.add_argument("--against", type=Path, help="compare with such a file")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


def main() -> None:
    cases = [*STEPS, *(f"loss-{name}" for name in LOSSES)]
    arguments = parser(cases).parse_args()
    wanted = arguments.case or [name for name in cases if arguments.model or name not in LANGUAGE]
    if not arguments.model and any(name in LANGUAGE for name in wanted):
        raise SystemExit("a case with a language model needs --model PATH")
    report: dict[str, Any] = {"provenance": provenance(), "rates": machine_rates(), "rows": []}
    rates, rows = report["rates"], report["rows"]
    for name in wanted:
        rounds = arguments.rounds
        rows.append(step(name, rates, rounds, arguments.model) if name in STEPS else loss(name, rates, rounds))
        if arguments.out:
            arguments.out.write_text(json.dumps(report, indent=1))
        print(f"{name}: done", file=sys.stderr)
    if arguments.json:
        print(json.dumps(report))
        return
    print(f"matrix products {rates['flops'] / 1e9:.0f} GFLOP/s, memory {rates['bytes_per_s'] / 1e9:.1f} GB/s")
    show(rows)
    if arguments.against:
        show_change(json.loads(arguments.against.read_text()), report)


if __name__ == "__main__":
    main()
