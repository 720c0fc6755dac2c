"""How a training step grows: with completions, their length, the vocabulary and the parameters; and memory with tokens.

Policies are drawn at random, and nothing that they say ends a completion: all run to their limit. Every size is
measured in one process, one thread, in processor seconds (which other programs change little), sizes in turn, several
times over. Each curve is fitted by t = a + b n^k with a, b >= 0: small steps cost a fixed a, which a straight line in
log-log would take for a smaller exponent; the smallest size of a curve is there to tell it. The interval of k is a
bootstrap over repeats. Attention grows with the square of the length by its nature, so length has a second curve in
which attention hands its queries through. Memory is measured by benchmarks/memory_plan.py.

    python benchmarks/scaling.py --figure docs/figures/scaling.png
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "math_grpo.yaml"
DIGITS = "0123456789+-=?;"
# What varies, its values, and how a value becomes settings; the rest as in BASE.
BASE = {"prompts": 8, "length": 64, "vocab": 1024, "hidden": 128, "layers": 4}
VARIED: dict[str, tuple[str, list[int]]] = {
    "completions": ("prompts", [4, 8, 16, 32, 64]),
    "length": ("length", [8, 32, 64, 128, 256, 512]),
    "length, no attention": ("length", [8, 32, 64, 128, 256, 512]),
    "vocabulary": ("vocab", [256, 4096, 8192, 16384, 32768, 65536]),
    "parameters": ("hidden", [32, 128, 192, 256, 384, 512]),
}
SAMPLES = 8
CONTEXT = 1024
MEMORY_PROMPTS = [16, 32, 64, 128]
BUDGET = ["train.micro_batch_tokens=4096", "rollout.batch=64"]


def overrides(sizes: dict[str, int], steps: int) -> list[str]:
    """Settings of a run with a policy and a step of these sizes."""
    filler = "".join(chr(0x20000 + i) for i in range(sizes["vocab"] - 2 - len(DIGITS)))  # no surrogates up there
    hidden = sizes["hidden"]
    scratch = {
        "alphabet": DIGITS + filler,
        "hidden_size": hidden,
        "layers": sizes["layers"],
        "heads": hidden // 32,
        "kv_heads": hidden // 32,
        "head_dim": 32,
        "intermediate_size": 3 * hidden,
        "context": CONTEXT,
    }
    return [
        "model.path=null",
        f"model.scratch={json.dumps(scratch, ensure_ascii=False)}",
        f"rollout.prompts={sizes['prompts']}",
        f"rollout.samples={SAMPLES}",
        f"rollout.max_new_tokens={sizes['length']}",
        f"train.steps={steps}",
        "optim.warmup_steps=0",
        "eval.every=0",
        "logging.kl_sequences=0",
        "train.ratio_tolerance=1",
    ]


@contextmanager
def without_attention() -> Iterator[None]:
    """Scores, weights and their masks cost nothing inside the block, and mix nothing."""
    from torch.nn import functional

    from cvxrl.policy import forward

    kept = functional.scaled_dot_product_attention, forward._mask
    functional.scaled_dot_product_attention = lambda query, *_, **__: query.clone()
    forward._mask = lambda present, *_: present.new_zeros((), dtype=bool)
    try:
        yield
    finally:
        functional.scaled_dot_product_attention, forward._mask = kept


@contextmanager
def without_end() -> Iterator[None]:
    """No token ends a completion inside the block: all run to their limit."""
    from cvxrl.policy.model import Policy
    from cvxrl.rollout.local_generator import LocalGenerator

    ends, generate = Policy.end_ids, LocalGenerator.generate

    def generated(self: LocalGenerator, prompts: Any, keys: Any, sampling: Any) -> Any:
        return generate(self, prompts, keys, replace(sampling, stop_ids=()))

    Policy.end_ids = property(lambda _: (-1,))  # type: ignore[assignment, method-assign]
    LocalGenerator.generate = generated  # type: ignore[method-assign]
    try:
        yield
    finally:
        Policy.end_ids, LocalGenerator.generate = ends, generate  # type: ignore[method-assign]


def seconds_and_tokens(sizes: dict[str, int], steps: int) -> tuple[list[float], float, int]:
    """Processor seconds of each step after the first, sampled tokens per step, and parameters."""
    from cvxrl.engine.trainer import Hooks, Trainer
    from cvxrl.recipe.load import load_recipe
    from cvxrl.report.stop import StopRequest

    trainer = Trainer.build(load_recipe(RECIPE, overrides(sizes, steps + 1)))
    ends: list[float] = []
    totals: list[float] = []

    def record(values: dict[str, float]) -> None:
        ends.append(time.process_time())
        totals.append(values["tokens/total"])

    with without_end():
        trainer.run(Hooks(record, lambda *_: None, lambda *_: None), StopRequest())
    parameters = sum(p.numel() for p in trainer.policy.model.parameters())
    return np.diff(ends).tolist(), totals[-1] / len(totals), parameters


def fit(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float, float]:
    """a, b, k of t = a + b n^k with the smallest sum of squared relative errors."""
    n, t = np.asarray(sizes) / max(sizes), np.asarray(seconds)
    best = (np.inf, 0.0, 0.0, 0.0)
    for k in np.arange(0.5, 2.0001, 0.005):
        columns = np.stack([np.ones_like(n), n**k], axis=1) / t[:, None]
        a, b = np.linalg.lstsq(columns, np.ones_like(t), rcond=None)[0]
        if a < 0:
            a, b = 0.0, float((n**k / t).sum() / ((n**k / t) ** 2).sum())
        error = float(((columns @ np.array([a, b]) - 1) ** 2).sum())
        if b > 0 and error < best[0]:
            best = (error, float(a), float(b), float(k))
    return best[1:]


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """Exponent of a straight line in log-log through the upper half of the sizes."""
    half = len(sizes) // 2
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])


def curve(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Sizes, times and fits of one variation."""
    key, values = VARIED[name]
    times: dict[int, list[float]] = {value: [] for value in values}
    size: dict[int, float] = {}
    for round_ in range(arguments.rounds):
        for value in values if round_ % 2 == 0 else reversed(values):
            with without_attention() if name == "length, no attention" else nullcontext():
                found, tokens, parameters = seconds_and_tokens({**BASE, key: value}, arguments.steps)
            times[value] += found
            size[value] = {"parameters": parameters, "vocabulary": value}.get(name, tokens)
            print(f"{name} {value}: {np.median(found):.3f} s", file=sys.stderr)
    n = [size[value] for value in values]
    medians = [float(np.median(times[value])) for value in values]
    a, b, k = fit(n, medians)
    rng = np.random.default_rng(0)
    draws = [
        fit(n, [float(np.median(rng.choice(times[value], len(times[value])))) for value in values])[2]
        for _ in range(200)
    ]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {
        "name": name,
        "sizes": n,
        "seconds": medians,
        "fixed": a,
        "scale": b,
        "exponent": k,
        "interval": [float(low), float(high)],
        "log_log_slope": slope(n, medians),
    }


def memory(prompts: int, budget: list[str]) -> float:
    """Peak MiB beyond the libraries of a run with so many prompts per step."""
    case = ["recipes/math_grpo.yaml", f"rollout.prompts={prompts}", *budget]
    command = [sys.executable, "benchmarks/memory_plan.py", "--case", *case, "--json"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return float(json.loads(done.stdout)[0]["measured_mib"])


def _short(number: float) -> str:
    """A size in three figures: 512, 984k, 14.2M."""
    scaled, unit = (number, "")
    if number >= 1000:
        scaled, unit = (number / 1e6, "M") if number >= 999_500 else (number / 1e3, "k")
    return f"{scaled:.3g}{unit}"


def _apart(sizes: Sequence[float]) -> list[float]:
    """Sizes whose labels do not touch on an axis of logarithms: the largest, and those far enough below another."""
    least, kept = 0.15 * np.log(max(sizes) / min(sizes)), sorted(sizes)[-1:]
    for size in sorted(sizes)[-2::-1]:
        kept += [size] if np.log(kept[-1] / size) >= least else []
    return kept


def draw(report: dict[str, Any], file: Path) -> None:
    """Five curves of time and one of memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, grid = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    axes = grid.flatten()
    labels = {
        "completions": "tokens per step (more completions)",
        "length": "tokens per step (longer completions)",
        "length, no attention": "tokens per step (longer, no attention)",
        "vocabulary": "vocabulary",
        "parameters": "parameters",
    }
    for axis, row in zip(axes, report["time"], strict=False):
        n = np.geomspace(min(row["sizes"]), max(row["sizes"]), 50)
        fitted = row["fixed"] + row["scale"] * (n / max(row["sizes"])) ** row["exponent"]
        low, high = row["interval"]
        axis.loglog(n, fitted, color="#0072B2", label=f"a + b n^k, k = {row['exponent']:.2f} [{low:.2f}, {high:.2f}]")
        axis.loglog(row["sizes"], row["seconds"], "o", color="#D55E00", label="measured")
        axis.set(xlabel=labels[row["name"]], ylabel="processor seconds per step")
        axis.set_xticks(_apart(row["sizes"]), [_short(n) for n in _apart(row["sizes"])])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        for one in (axis.xaxis, axis.yaxis):
            one.set_minor_formatter(NullFormatter())
        axis.minorticks_off()
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    if report["memory"]:
        axis = axes[-1]
        tokens = [row["completions"] for row in report["memory"]]
        for key, label, style in (
            ("whole", "all at once", {"color": "#D55E00", "marker": "s", "linestyle": "--"}),
            ("budget", " ".join(BUDGET).replace(" ", "\n"), {"color": "#0072B2", "marker": "o"}),
        ):
            axis.plot(tokens, [row[key] for row in report["memory"]], label=label, **style)
        axis.set(xlabel="completions per step", ylabel="peak MiB beyond the libraries", ylim=(0, None))
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", action="append", choices=[*VARIED, "memory"], help="may be repeated; all if none")
    parser.add_argument("--steps", type=int, default=2, help="steps measured per size and round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--figure", type=Path, help="write the figure there")
    parser.add_argument("--from", dest="read", type=Path, action="append", help="take curves from --json output")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    arguments = parser.parse_args()
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    report: dict[str, Any] = {"time": [], "memory": []}
    if arguments.read:
        for file in arguments.read:
            found = json.loads(file.read_text())
            report = {key: report[key] + found[key] for key in report}
    else:
        import torch

        torch.set_num_threads(1)
        wanted = arguments.only or [*VARIED, "memory"]
        report["time"] = [curve(name, arguments) for name in wanted if name != "memory"]
        if "memory" in wanted:
            report["memory"] = [
                {"completions": p * SAMPLES, "whole": memory(p, []), "budget": memory(p, BUDGET)}
                for p in MEMORY_PROMPTS
            ]
    if arguments.figure:
        draw(report, arguments.figure)
    if arguments.json:
        print(json.dumps(report))
        return
    for row in report["time"]:
        low, high = row["interval"]
        share = row["fixed"] / row["seconds"][-1]
        print(
            f"{row['name']:20} exponent {row['exponent']:.2f} [{low:.2f}, {high:.2f}], fixed cost {share:.0%} of the "
            f"largest, log-log slope of the upper half {row['log_log_slope']:.2f}"
        )
    for row in report["memory"]:
        print(f"{row['completions']:5} completions: {row['whole']:.0f} MiB, within a budget {row['budget']:.0f} MiB")


if __name__ == "__main__":
    main()
