"""A measured step has the learning rate of the optimizer step that training would take next."""

from __future__ import annotations

import pytest
from helpers import tiny

from cvxrl.inspection.schedule import next_index, next_rate, schedule_notes

REUSED = ("train.steps=4", "train.inner_epochs=2", "train.minibatches=2", "optim.lr=1e-3", "optim.final_lr_fraction=0")


def test_optimizer_steps_are_counted_and_not_rollouts() -> None:
    recipe = tiny("math_grpo", *REUSED, "optim.warmup_steps=10")
    assert [next_index(recipe, step) for step in range(4)] == [0, 4, 8, 12]
    assert [next_rate(recipe, step) for step in (0, 1, 2)] == pytest.approx([1e-4, 5e-4, 9e-4])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_past_a_schedule_that_ends_at_0_a_step_has_the_last_rate_above_it(schedule: str) -> None:
    recipe = tiny("math_grpo", *REUSED, f"optim.schedule={schedule}", "optim.warmup_steps=0")
    for step in (4, 7):
        assert next_index(recipe, step) == 14 and next_index(recipe, step, 4) == 11
        assert 0 < next_rate(recipe, step) < 1e-4
        (note,) = schedule_notes(recipe, step)
        assert "ended at 0" in note and f"{next_rate(recipe, step):g}" in note
    assert next_index(recipe, 3, 4) == 12 and schedule_notes(recipe, 3) == []  # training's own steps


def test_the_last_step_of_a_schedule_is_training_s_own_and_said_to_move_nothing() -> None:
    recipe = tiny("math_grpo", "train.steps=3", "optim.schedule=cosine", "optim.warmup_steps=0")
    assert next_index(recipe, 2) == 2 and next_rate(recipe, 2) == 0
    assert "moves nothing" in schedule_notes(recipe, 2)[0]
    assert next_index(recipe, 3) == 1 and next_rate(recipe, 3) > 0


@pytest.mark.parametrize(
    "overrides", [("optim.schedule=constant",), ("optim.schedule=cosine", "optim.final_lr_fraction=0.1")]
)
def test_past_another_end_it_is_the_last_step(overrides: tuple[str, ...]) -> None:
    recipe = tiny("math_grpo", *REUSED, *overrides)
    assert (next_index(recipe, 4), next_index(recipe, 9, 4)) == (15, 12)
    assert schedule_notes(recipe, 4) == []
