"""The table at the end of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cvxrl.recipe.schema import Recipe
from cvxrl.runs.directory import RunDir
from cvxrl.runs.sink import Row

# Averaging the first and last steps keeps one lucky batch from being the headline.
_WINDOW = 10


def summary_rows(records: Sequence[Mapping[str, float]], run_dir: RunDir, recipe: Recipe) -> list[Row]:
    """Rows (name, start, end): accuracy with its standard error and n, and averages over the first and last steps."""
    rows: list[Row] = []
    evaluated = [r for r in records if r.get("eval/accuracy") is not None]
    if evaluated:
        name = f"held-out accuracy, {recipe.eval.prompts} x {recipe.eval.samples} samples"
        rows.append((name, _accuracy(evaluated[0]), _accuracy(evaluated[-1])))
    steps = [r for r in records if r["step"] > 0]
    window = min(_WINDOW, max(1, len(steps) // 2))
    for key, name, form in (
        ("reward/mean", "training reward", ".3f"),
        ("loss", "loss", ".3g"),
        ("policy/entropy", "entropy (nats)", ".3f"),
        ("policy/kl", "KL per step (nats)", ".2e"),
        ("grad/norm", "gradient norm before clipping", ".3g"),
        ("response/length", "response length (tokens)", ".1f"),
    ):
        if steps and key in steps[0]:
            ends = (_mean(part, key) for part in (steps[:window], steps[-window:]))
            first, last = (format(value, form) for value in ends)
            rows.append((name, first, last))
    if steps:
        last_step = steps[-1]
        rows.append(("tokens trained on", "", f"{int(last_step['tokens/total']):,}"))
        rows.append(("training time (s)", "", f"{last_step['time/total_s']:.0f}"))
    rows.append(("run directory", "", str(run_dir.path)))
    return rows


def _accuracy(record: Mapping[str, float]) -> str:
    return f"{record['eval/accuracy']:.3f} ± {record['eval/stderr']:.3f}"


def _mean(records: Sequence[Mapping[str, float]], key: str) -> float:
    values = [r[key] for r in records if r.get(key) is not None]
    return sum(values) / len(values) if values else float("nan")
