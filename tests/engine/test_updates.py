"""updates.jsonl: every optimizer step by itself, beside the means over a rollout."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import SilentSink, tiny

from cvxrl.api import TrainedRun
from cvxrl.engine.session import run_training
from cvxrl.recipe.digest import digest
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import keep_lines, read_records

REUSED = ("train.inner_epochs=3", "train.minibatches=2", "eval.every=0", "rollout.max_new_tokens=16")


def test_a_line_per_optimizer_step_whose_means_are_the_metrics(tmp_path: Path) -> None:
    recipe = tiny("math_lco_kld", *REUSED, "logging.updates=true")
    run_dir = RunDir.of(tmp_path, recipe)
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "finished"
    records = read_records(run_dir.metrics)
    lines = TrainedRun(run_dir.path, "finished", records, {}).updates
    assert [(line["step"], line["epoch"], line["update"]) for line in lines] == [
        (step, epoch, 2 * (epoch - 1) + part) for step in (1, 2) for epoch in (1, 2, 3) for part in (1, 2)
    ]
    for record in records:
        own = [line for line in lines if line["step"] == record["step"]]
        for key in ("loss", "grad/norm", "policy/entropy", "optim/lr"):
            assert sum(line[key] for line in own) / len(own) == pytest.approx(record[key], rel=1e-12)
    assert len({line["grad/norm"] for line in lines}) == 12


def test_it_is_asked_for_and_changes_no_digest() -> None:
    assert digest(tiny("math_grpo")) == digest(tiny("math_grpo", "logging.updates=true"))
    assert not tiny("math_grpo").logging.updates


def test_what_is_done_again_is_told_once(tmp_path: Path) -> None:
    file = tmp_path / "updates.jsonl"
    keep_lines(file, 3)
    assert not file.exists()
    file.write_text('{"step": 1, "update": 1}\nnonsense\n{"step": 1, "update": 2}\n{"step": 2, "update": 1}\n{"ste')
    keep_lines(file, 1)
    assert [line["update"] for line in read_records(file)] == [1, 2]
