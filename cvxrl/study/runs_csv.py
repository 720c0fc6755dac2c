"""Every run of a study as a row of one CSV file, from which all its numbers can be had again.

Derived columns (score, failures, area, entropy) are for whoever opens the file; reading takes the status, the recipe
and the curves, from which a comparison derives everything anew.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cvxrl.comparison.options import Options
from cvxrl.comparison.outcome import outcome_of
from cvxrl.comparison.run import LoggedRun, Run, is_scored, setting
from cvxrl.comparison.score import quality_key, score_run, stability_of
from cvxrl.recipe.digest import digest_of, leaves, without_neutral
from cvxrl.recipe.yaml_file import write_value
from cvxrl.runs.files import finite
from cvxrl.study.cells import Cell
from cvxrl.study.collected import Found
from cvxrl.study.plan import Study

# Metrics that a comparison reads: of evaluations with what had been counted until then, and of steps.
EVALUATED = ("eval/accuracy", "eval/stderr", "policy/entropy", "tokens/total", "time/total_s")
TRAINED = ("grad/norm", "policy/kl", "policy/entropy")
RECIPE = "recipe."  # prefix of the columns that hold it, one per key


def to_csv(study: Study, found: Found, folder: Path) -> str:
    """One row per run of all stages.

    Args:
        study: the plan.
        found: its cells with their runs; those that have not ended have a status and no score.
        folder: of the study's runs, from which paths are written.
    """
    options = Options(confidence=study.confidence)
    every = [(cell, run) for cell, runs in found for run in runs if isinstance(run, LoggedRun)]
    rows = [_row(cell, run, study.vary, folder, options) for cell, run in every]
    recipes = sorted({key for row in rows for key in row if key.startswith(RECIPE)})
    own = list(dict.fromkeys(key for row in rows for key in row if not key.startswith(RECIPE)))
    stream = io.StringIO()
    writer = csv.DictWriter(stream, [*own, *recipes], restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(finite(row) for row in rows)
    return stream.getvalue()


def _row(cell: Cell, run: LoggedRun, vary: str, folder: Path, options: Options) -> dict[str, Any]:
    recipe = dict(run.recipe or {})
    return {
        "stage": cell.stage,
        "grid": cell.grid,
        "method": cell.method,
        "regime": cell.regime,
        "value": cell.value,
        "multiple": cell.multiple,
        "alternative": cell.variant,
        "settings": _json(cell.settings),
        "seed": run.seed,
        "status": run.status,
        **_derived(run, options),
        "steps": run.steps,
        "diverged_at": run.diverged_at,
        "digest": digest_of(recipe),
        "task": run.task,
        "commit": run.origin.get("commit", "").split(" ")[0],
        "origin": _json(run.origin),
        "doubts": _json(list(run.doubts)),
        "path": _below(run.path, folder),
        "evaluations": _json(_columns(_evaluations(run), EVALUATED)),
        "training": _json(_columns(_steps(run), TRAINED)),
        f"{RECIPE}{vary}": write_value(setting(recipe, vary)),
        **{f"{RECIPE}{key}": write_value(value) for key, value in leaves(without_neutral(recipe))},
    }


def _derived(run: Run, options: Options) -> dict[str, Any]:
    """What a comparison makes of the run; empty where it has not ended."""
    if not is_scored(run):
        return dict.fromkeys(("failures", "failed_at", "score", "error", "area", "entropy", "tokens", "seconds"))
    score, outcome = score_run(run, options), outcome_of(run, quality_key(options), options)
    return {
        "failures": "+".join(outcome.failures),
        "failed_at": outcome.step,
        "score": score.score,
        "error": score.error,
        "area": score.area,
        "entropy": stability_of(run, options.spike).entropy_end,
        "tokens": score.tokens,
        "seconds": score.seconds,
    }


def _evaluations(run: LoggedRun) -> list[Mapping[str, Any]]:
    """Records with an evaluation, and the last one, which has what was counted until the end."""
    records = list(run.records)
    return [r for r in records if r.get("eval/accuracy") is not None or r is records[-1]]


def _steps(run: LoggedRun) -> list[Mapping[str, Any]]:
    return [r for r in run.records if any(r.get(key) is not None for key in TRAINED)]


def _columns(records: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> dict[str, list[Any]]:
    """One list per metric that any of the records has, beside that of their steps."""
    columns = {key: [record.get(key) for record in records] for key in keys}
    steps = {"step": [record["step"] for record in records]}
    return steps | {key: values for key, values in columns.items() if any(value is not None for value in values)}


def _below(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else path.as_posix()


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))
