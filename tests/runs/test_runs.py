"""Files of a run: whole or absent, checksums, plan and schedule."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers import SilentSink, tiny

from cvxrl.engine.plan import describe
from cvxrl.engine.session import run_training
from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.recipe.schema import learning_rate
from cvxrl.recipe.training import AdamwSpec
from cvxrl.runs.checkpoint import list_checkpoints, prune, save_checkpoint, verify_checkpoint
from cvxrl.runs.directory import RunDir
from cvxrl.runs.files import write_directory, write_json
from cvxrl.runs.jsonl import read_records


def test_a_failed_write_leaves_the_old_directory(tmp_path: Path) -> None:
    target = tmp_path / "policy"
    write_directory(target, lambda d: (d / "a").write_text("old") and None)

    def fail(directory: Path) -> None:
        (directory / "a").write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_directory(target, fail)
    assert (target / "a").read_text() == "old"
    write_directory(target, lambda d: (d / "a").write_text("new") and None)
    assert (target / "a").read_text() == "new"


def test_json_has_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [float("nan"), float("inf"), 1.5]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, None, 1.5]}


def test_checkpoints_are_pruned_and_checked(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, fill=lambda d: (d / "w").write_text("weights") and None)
    prune(tmp_path, keep=2)
    kept = list_checkpoints(tmp_path)
    assert [p.name for p in kept] == ["step-000002", "step-000003"]
    verify_checkpoint(kept[0])
    (kept[1] / "w").write_text("weightz")
    with pytest.raises(UserError, match="damaged"):
        verify_checkpoint(kept[1])


def test_learning_rate_schedule() -> None:
    spec = AdamwSpec(lr=1.0, warmup_steps=2, schedule="linear", final_lr_fraction=0.5)
    assert [learning_rate(spec, i, 5) for i in range(5)] == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5])
    cosine = AdamwSpec(lr=1.0, schedule="cosine")
    assert [learning_rate(cosine, i, 3) for i in range(3)] == pytest.approx([1.0, 0.5, 0.0])


@pytest.mark.parametrize("name", ["math_grpo", "base_sft"])
def test_plan_counts_parameters_exactly(name: str) -> None:
    recipe = tiny(name)
    policy = Trainer.build(recipe).policy
    plan = describe(recipe)
    assert plan.parameters == sum(p.numel() for p in policy.model.parameters())
    assert plan.memory_bytes is not None and plan.memory_bytes > 16 * plan.parameters


def test_clipping_is_logged_before_and_after(tmp_path: Path) -> None:
    recipe = tiny("math_grpo", "optim.max_grad_norm=1e-3")
    run_dir = RunDir.of(tmp_path, recipe)
    run_training(recipe, run_dir, SilentSink(), "new")
    last = read_records(run_dir.metrics)[-1]
    assert last["grad/norm"] > 1e-3 and last["grad/norm_clipped"] == 1e-3


@pytest.mark.parametrize("overrides", [["train.precision=bf16"], ["model.dtype=bfloat16"]])
def test_bf16_trains(overrides: list[str], tmp_path: Path) -> None:
    recipe = tiny("math_lco_kld", "train.steps=1", "eval.every=0", *overrides)
    run_dir = RunDir.of(tmp_path, recipe)
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "finished"
    assert 0 < read_records(run_dir.metrics)[0]["check/ratio_deviation"] < 1


def test_cuda_is_used_when_present(tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    recipe = tiny("math_lco_kld", "train.device=cuda")
    assert run_training(recipe, RunDir.of(tmp_path, recipe), SilentSink(), "new").status == "finished"
