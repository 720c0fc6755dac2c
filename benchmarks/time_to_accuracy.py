"""Time of training until a held-out accuracy is reached, cvxrl against a peer, each with its own tuned recipe.

Same policy, task, held-out questions and evaluator, which asks before training and after every rollout from the 640th
completion on, and whose time is not counted. The clock is that of the training steps alone: processor seconds and wall
seconds of one thread, or of `--threads`. Sides run in alternation, each run in a process of its own. A run that is not
there after `--completions` is censored, one that fell below a third of where it began is broken off; both are said.

    pip install -c constraints.txt -e ".[bench]"
    python benchmarks/time_to_accuracy.py --peer trl                     # three seeds with the settings chosen
    python benchmarks/time_to_accuracy.py --peer trl --tune second --seeds 101  # a whole grid, to choose from
    python benchmarks/time_to_accuracy.py --peer trl --runs trl_runs     # to the end; TRL's folders, for `compare`
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accuracy_settings import CHOSEN, GRIDS
from trl_runs import train as train_in_trl

from cvxrl.comparison.options import parse_seeds
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.schema import Recipe

FELL = 1 / 3
FIRST = 640  # completions after which the questions are asked for the first time since training began
Row = dict[str, float]
Stop = Callable[[Sequence[Row]], bool]


def recipe_of(setting: str, seed: int, completions: int) -> Recipe:
    """Of a setting, with as many rollouts as make so many completions, unless it says how many itself."""
    name, *overrides = setting.split()
    rollouts = completions // load_recipe(name, overrides, seed).sequences_per_step
    return load_recipe(name, [f"train.steps={rollouts}", *overrides], seed)


def is_due(recipe: Recipe, rollout: int) -> bool:
    """Whether an evaluation follows a rollout."""
    return rollout * recipe.sequences_per_step >= FIRST


def run_cvxrl(recipe: Recipe, stop: Stop) -> list[Row]:
    """What every evaluation found, and the seconds of the steps before it."""
    from cvxrl.engine.trainer import Hooks, Trainer
    from cvxrl.evaluation.held_out import HeldOut
    from cvxrl.evaluation.together import Alone
    from cvxrl.report.stop import StopRequest

    silent = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"every": 0})})
    trainer, request = Trainer.build(silent), StopRequest()
    parts = trainer.policy, trainer.generator, trainer.task, trainer.grader
    held_out, rows = HeldOut.prepare(recipe, *parts, Alone()), []
    used, began = [0.0, 0.0], (0.0, 0.0)

    def look(record: Row) -> None:
        nonlocal used, began
        ended, step = (time.perf_counter(), time.process_time()), int(record["step"])
        if step:
            used = [u + e - b for u, e, b in zip(used, ended, began, strict=True)]
        if step == 0 or is_due(recipe, step):
            found = held_out.evaluate(step).metrics() | dict(zip(("time/total_s", "time/cpu_s"), used, strict=True))
            rows.append({"step": step * recipe.train.minibatches * recipe.train.inner_epochs, **found})
            request.requested = stop(rows)
        began = time.perf_counter(), time.process_time()

    look({"step": 0})
    trainer.run(Hooks(look, lambda *_: None, lambda *_: None), request)
    return rows


def run_trl(recipe: Recipe, stop: Stop, folder: Path) -> list[Row]:
    """As `run_cvxrl`, in TRL's own loop with its own loss."""
    rows: list[Row] = []

    def looked(row: Row) -> bool:
        rows.append(row)
        return stop(rows)

    train_in_trl("grpo", recipe, lambda rollout: is_due(recipe, rollout), folder, looked)
    return rows


def is_there(row: Row, target: float) -> bool:
    return row["eval/accuracy"] >= target


def fell(rows: Sequence[Row]) -> bool:
    return rows[-1]["eval/accuracy"] < FELL * rows[0]["eval/accuracy"]


def summarize(rows: Sequence[Row], target: float, per_step: int) -> dict[str, Any]:
    """What a run had used up at the first evaluation that found the accuracy, or at its last.

    Args:
        rows: its evaluations, that before training included.
        target: the accuracy.
        per_step: completions of an optimizer step.
    """
    reached = next((row for row in rows if is_there(row, target)), None)
    at = reached or rows[-1]
    return {
        **{"fate": "there" if reached else "fell" if fell(rows) else "censored", "accuracy": at["eval/accuracy"]},
        **{"stderr": at["eval/stderr"], "completions": int(at["step"]) * per_step, "steps": int(at["step"])},
        **{"cpu_s": at["time/cpu_s"], "wall_s": at["time/total_s"], "end": rows[-1]["eval/accuracy"]},
        **{"curve": [[row["step"], row["eval/accuracy"], row["time/cpu_s"]] for row in rows]},
    }


def child(arguments: argparse.Namespace) -> None:
    side, setting, seed = json.loads(arguments.child)
    recipe = recipe_of(setting, seed, arguments.completions)

    def stop(rows: Sequence[Row]) -> bool:
        return arguments.runs is None and (is_there(rows[-1], arguments.accuracy) or fell(rows))

    with tempfile.TemporaryDirectory() as spare:
        folder = (arguments.runs or Path(spare)) / f"trl_grpo-seed{seed}"
        rows = run_cvxrl(recipe, stop) if side == "cvxrl" else run_trl(recipe, stop, folder)
    per_step = recipe.sequences_per_step // (recipe.train.minibatches * recipe.train.inner_epochs)
    found = {"side": side, "setting": setting, "seed": seed, **summarize(rows, arguments.accuracy, per_step)}
    Path(arguments.report).write_text(json.dumps(found))


def measure(arguments: argparse.Namespace, *cell: Any) -> dict[str, Any]:
    """One run, in a process of its own."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, __file__, "--child", json.dumps(cell), "--report", report.name]
        command += ["--accuracy", str(arguments.accuracy), "--completions", str(arguments.completions)]
        command += ["--runs", str(arguments.runs)] if arguments.runs else []
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        quiet["OMP_NUM_THREADS"] = str(arguments.threads)
        subprocess.run(command, check=True, env={**os.environ, **quiet}, stdout=subprocess.DEVNULL)
        found: dict[str, Any] = json.loads(Path(report.name).read_text())
    shown = (found[key] for key in ("side", "setting", "seed", "fate", "accuracy", "completions", "steps"))
    load = os.getloadavg()[0]
    print(*shown, f"{found['cpu_s']:.1f} cpu s, {found['wall_s']:.1f} s, load {load:.1f}", sep="\t", flush=True)
    return found


def ratios(runs: Sequence[dict[str, Any]], peer: str) -> dict[str, Any]:
    """Ours over the peer's, of the means of all seeds and seed by seed; nothing where a run did not get there."""
    sides = {side: {run["seed"]: run for run in runs if run["side"] == side} for side in ("cvxrl", peer)}
    found: dict[str, Any] = {}
    if any(run["fate"] != "there" for run in runs):
        return found
    for what in ("cpu_s", "wall_s", "completions", "steps"):
        ours, theirs = ({seed: run[what] for seed, run in side.items()} for side in sides.values())
        each = sorted(ours[seed] / theirs[seed] for seed in ours)
        mean = statistics.mean(ours.values()) / statistics.mean(theirs.values())
        found[what] = {"of_means": mean, "least": each[0], "most": each[-1]}
    return found


def main() -> None:
    """Run both sides in alternation and print what each needed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", choices=["trl"], default="trl")
    parser.add_argument("--seeds", type=parse_seeds, default=(0, 1, 2))
    parser.add_argument("--accuracy", type=float, default=0.9)
    parser.add_argument("--completions", type=int, default=2560, help="most completions of a run")
    parser.add_argument("--threads", type=int, default=1, help="of each run; with more, wall seconds are what counts")
    parser.add_argument("--tune", choices=GRIDS, help="all settings of a grid instead of those chosen")
    parser.add_argument("--runs", type=Path, help="go on to the last completion and keep the peer's folders here")
    parser.add_argument("--out", type=Path, help="write all runs as one JSON document")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--report", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    grids = GRIDS[arguments.tune] if arguments.tune else {side: (setting,) for side, setting in CHOSEN.items()}
    runs = []
    for number, seed in enumerate(arguments.seeds):
        for cells in zip(*([(side, s, seed) for s in grids[side]] for side in ("cvxrl", arguments.peer)), strict=True):
            # Who goes first changes, so that a drift of the machine's speed favours nobody.
            runs += [measure(arguments, *cell) for cell in (cells[::-1] if number % 2 else cells)]
    found = {} if arguments.tune else ratios(runs, arguments.peer)
    for what, ratio in found.items():
        print(f"{what}: cvxrl / {arguments.peer} {ratio['of_means']:.2f} [{ratio['least']:.2f}, {ratio['most']:.2f}]")
    if arguments.out:
        arguments.out.write_text(json.dumps({"runs": runs, "ratios": found}, indent=1))


if __name__ == "__main__":
    main()
