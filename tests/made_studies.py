"""Plans whose training is replaced by writing runs, so that a whole study takes a second."""

from __future__ import annotations

import json

from made_runs import PROVENANCE

from cvxrl.comparison.plan import Job
from cvxrl.recipe.digest import digest
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.directory import RunDir
from cvxrl.runs.record import STREAMS, Divergence, RunRecord, Status

PLAN = """
study: 1
name: mine
question: Which one?
set: {train.steps: 2, eval.every: 1}
methods:
  grpo: {recipe: math_grpo}
  lco: {recipe: math_lco_kld, alternatives: [{objective.beta: 0.5}]}
regimes:
  once: {}
  twice: {set: {train.inner_epochs: 2}, values: [1.0e-3]}
tuning: {values: [1.0e-4, 1.0e-3], seeds: 100-101}
confirmation: {seeds: {1: 0-3, 4: 0-1}}
rules:
  - verdict: lco is better
    when:
      - low(diff(lco@once, grpo@once)) > 0
      - failures(lco@once) == 0
otherwise: undecided
"""


def accuracy(recipe: Recipe) -> float:
    """Final accuracy of a made run: lco is better, beta 0.5 is best, and 1e-3 suits grpo better than 1e-4."""
    good = 0.9 if recipe.name == "lco" else 0.6
    good += 0.05 * (getattr(recipe.objective, "beta", 1.0) == 0.5)
    return good - 0.2 * (recipe.optim.lr == 1e-4) - 0.3 * (recipe.optim.lr > 1e-3) + 0.01 * (recipe.seed % 3)


def write_run(job: Job, status: Status = "finished") -> None:
    """A run of 60 s; one that is not finished ends before its first step is done."""
    recipe = load_recipe(job.recipe, job.overrides, job.seed)
    run_dir = RunDir.of(job.out, recipe)
    run_dir.path.mkdir(parents=True, exist_ok=True)
    run_dir.recipe.write_text(json.dumps(recipe.model_dump(mode="json")))  # is YAML too, and sooner written
    record = RunRecord(
        status=status,
        streams=STREAMS,
        digest=digest(recipe),
        seed=recipe.seed,
        task_fingerprint=f"task {getattr(recipe.task.source, 'terms', None)}",
        parameters=1,
        provenance=PROVENANCE,
        started="2026-01-01T00:00:00+00:00",
        ended=None if status == "interrupted" else "2026-01-01T00:01:00+00:00",
        divergence=Divergence(step=1, tensor="loss", detail="nan", last_checkpoint=None)
        if status == "diverged"
        else None,
    )
    run_dir.record.write_text(record.model_dump_json())
    steps = range(recipe.train.steps + 1) if status == "finished" else range(1)
    run_dir.metrics.write_text("".join(json.dumps(_line(step, recipe)) + "\n" for step in steps))


def _line(step: int, recipe: Recipe) -> dict[str, float]:
    if step == 0:
        return {"step": 0, "eval/accuracy": 0.2, "eval/stderr": 0.02}
    norm = 1 / 3 + recipe.seed / 7 + step * recipe.optim.lr
    training = {"grad/norm": norm, "policy/kl": norm / 9, "policy/entropy": 1 / (step + norm)}
    counted = {"tokens/total": 100 * step, "time/total_s": 0.1 * step}
    return {"step": step, "eval/accuracy": accuracy(recipe), "eval/stderr": 0.03, **training, **counted}
