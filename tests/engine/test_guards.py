"""Guards: stated rules over the records, and what a run that one of them stops leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import SilentSink, tiny

from cvxrl.engine.divergence import DivergedError
from cvxrl.engine.guards import Firing, Guards
from cvxrl.engine.session import run_training
from cvxrl.errors import UserError
from cvxrl.recipe.monitoring import GuardsSpec
from cvxrl.runs.directory import RunDir


def steps(key: str, *values: float | None) -> list[dict[str, Any]]:
    """Records of steps 1, 2, ..., with an evaluation before them."""
    return [{"step": 0}, *({"step": i, key: value} for i, value in enumerate(values, start=1))]


def firing(guard: dict[str, Any], records: list[dict[str, Any]]) -> list[Firing]:
    """What fires after the newest record."""
    guards = Guards(GuardsSpec.model_validate(guard))
    return [guards.see(record) for record in records][-1]


@pytest.mark.parametrize(
    ("guard", "key", "values", "fires"),
    [
        ({"entropy": {"below": 0.1, "patience": 2}}, "policy/entropy", [0.2, 0.05, 0.05], True),
        ({"entropy": {"below": 0.1, "patience": 2}}, "policy/entropy", [0.05, 0.2, 0.05], False),
        ({"entropy": {"below": 0.1, "patience": 2}}, "policy/entropy", [0.05], False),
        ({"entropy": {"below": 0.1, "patience": 2}}, "policy/entropy", [0.05, None, 0.05], False),
        ({"kl": {"above": 1.0, "patience": 2}}, "policy/kl", [0.1, 2.0, 2.0], True),
        ({"kl": {"above": 1.0, "patience": 3}}, "policy/kl", [0.1, 2.0, 2.0], False),
        ({"kl": {"above": 1.0, "patience": 2}}, "policy/kl", [0.1, None, 2.0], True),  # it overflowed
        ({"reward": {"window": 2, "drop": 0.5}}, "reward/mean", [0.9, 0.9, 0.4, 0.4], True),
        ({"reward": {"window": 2, "drop": 0.5}}, "reward/mean", [0.9, None, 0.9, None, 0.4, 0.4], True),
        ({"reward": {"window": 2, "drop": 0.5}}, "reward/mean", [0.9, 0.9, 0.1, 0.9], False),
        ({"reward": {"window": 3, "drop": 0.5}}, "reward/mean", [0.9, 0.1], False),
        ({}, "reward/mean", [0.9, 0.0], False),
    ],
)
def test_rules(guard: dict[str, Any], key: str, values: list[float], fires: bool) -> None:
    found = firing(guard, steps(key, *values))
    assert [f.name for f in found] == ([f"guards.{next(iter(guard))}"] if fires else [])
    assert all(f.first for f in found), "it held one step earlier"
    if fires:
        assert not firing(guard, steps(key, *values, values[-1]))[0].first


@pytest.mark.parametrize("action", ["stop", "warn"])
def test_a_guard_stops_or_warns_once(action: str, tmp_path: Path) -> None:
    said: list[str] = []
    sink = SilentSink()
    sink.event = said.append  # type: ignore[method-assign]
    guarded = f"guards.entropy={{below: 99, patience: 2, action: {action}}}"
    recipe = tiny("math_grpo", "train.steps=3", "eval.every=0", "rollout.max_new_tokens=8", guarded)
    run_dir = RunDir.of(tmp_path, recipe)
    result = run_training(recipe, run_dir, sink, "new")
    record = json.loads(run_dir.record.read_text())
    assert len([s for s in said if "guards.entropy" in s]) == 1
    if action == "warn":
        assert result.status == record["status"] == "finished"
        return
    assert result.status == record["status"] == "diverged"
    assert record["divergence"]["step"] == 2 and record["divergence"]["tensor"] == "guards.entropy"
    assert "below 99 for 2 steps" in record["divergence"]["detail"]


def test_a_diverged_step_leaves_its_batch_and_names_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cvxrl.engine.update import Updater

    update = Updater.update

    def fails(self: Updater, sequences: Any, step: int, tell: Any = None) -> dict[str, float]:
        if step == 3:
            raise DivergedError("loss", "1 of 1 entries are not finite")
        return update(self, sequences, step, tell)

    monkeypatch.setattr(Updater, "update", fails)
    recipe = tiny("math_grpo", "train.steps=4", "checkpoint.every=1")
    run_dir = RunDir.of(tmp_path, recipe)
    assert run_training(recipe, run_dir, SilentSink(), "new").status == "diverged"
    divergence = json.loads(run_dir.record.read_text())["divergence"]
    assert (divergence["step"], divergence["last_checkpoint"]) == (3, "checkpoints/step-000002")
    batch = [json.loads(line) for line in run_dir.divergence(3).read_text().splitlines()]
    assert [line["sequence"] for line in batch] == divergence["sequences"] == list(range(16))
    assert set(divergence["prompts"]) == {line["id"] for line in batch}
    assert not run_dir.policy.exists()


@pytest.mark.parametrize(
    ("guard", "logging", "key"),
    [
        ("guards.entropy={below: 0.1}", "logging.idle_groups=false", "logging.idle_groups: guards.entropy"),
        ("guards.kl={above: 0.1}", "logging.kl_sequences=0", "guards.kl: reads what"),
    ],
)
def test_a_guard_of_what_is_not_logged_is_refused(guard: str, logging: str, key: str) -> None:
    with pytest.raises(UserError) as raised:
        tiny("math_grpo", guard, logging)
    assert len(raised.value.problems) == 1 and key in str(raised.value)
    tiny("math_grpo", guard), tiny("math_grpo", logging)
