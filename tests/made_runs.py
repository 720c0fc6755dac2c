"""Run directories written by hand, so that every number in them is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from helpers import ROOT

from cvxrl.recipe.digest import digest
from cvxrl.recipe.load import dump, load_recipe
from cvxrl.runs.directory import RunDir
from cvxrl.runs.provenance import Provenance
from cvxrl.runs.record import STREAMS, Divergence, RunRecord, Status

PROVENANCE = Provenance(commit="c0ffee", dirty_diff=None, versions={"python": "3"}, machine={"cores": "2"})


def make_run(
    out: Path,
    recipe: str = "math_grpo",
    seed: int = 0,
    curve: Sequence[float] = (0.4, 0.6, 0.8),
    *,
    overrides: Sequence[str] = (),
    status: Status = "finished",
    diverged_at: int = 0,
    norms: Sequence[float] = (),
    task: str = "task",
) -> Path:
    """A run of as many steps as ``curve`` has values after the first; step n used 100 n tokens and 2 n seconds."""
    steps = len(curve) - 1
    sets = [f"train.steps={max(1, steps)}", "eval.every=1", "optim.warmup_steps=0", *overrides]
    loaded = load_recipe(ROOT / "recipes" / f"{recipe}.yaml", sets, seed)
    run_dir = RunDir.of(out, loaded)
    run_dir.path.mkdir(parents=True)
    run_dir.recipe.write_text(dump(loaded))
    record = RunRecord(
        status=status,
        streams=STREAMS,
        digest=digest(loaded),
        seed=seed,
        task_fingerprint=task,
        parameters=1,
        provenance=PROVENANCE,
        started="2026-01-01T00:00:00+00:00",
        divergence=Divergence(step=diverged_at, tensor="loss", detail="nan", last_checkpoint=None)
        if status == "diverged"
        else None,
    )
    run_dir.record.write_text(record.model_dump_json())
    lines = []
    for step, accuracy in enumerate(curve):
        if status == "diverged" and step >= diverged_at:
            break
        line = {"step": step, "eval/accuracy": accuracy}
        if step:
            norm = norms[step - 1] if norms else 1.0
            line |= {"reward/mean": accuracy, "tokens/total": 100 * step, "time/total_s": 2.0 * step}
            line |= {"grad/norm": norm, "policy/kl": 0.01 * step, "policy/entropy": 1.0 / step}
        lines.append(json.dumps(line) + "\n")
    run_dir.metrics.write_text("".join(lines))
    return run_dir.path


def make_seeds(out: Path, recipe: str, finals: Sequence[float], **options: object) -> list[Path]:
    """One run per final accuracy, seeds counting from 0."""
    return [
        make_run(out, recipe, seed, (0.4, (0.4 + final) / 2, final), **options)  # type: ignore[arg-type]
        for seed, final in enumerate(finals)
    ]
