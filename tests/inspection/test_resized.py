"""A rollout of another size: what the run's own recipe cannot do with it is told under the option that asks for it."""

from __future__ import annotations

import pytest
from helpers import tiny

from cvxrl.inspection.options import InspectOptions
from cvxrl.inspection.resized import resized, size_problems
from cvxrl.recipe.schema import Recipe, optimizer_steps


def told(recipe: Recipe, **options: int) -> list[tuple[str, str]]:
    return [(p.key, p.message) for p in size_problems(recipe, InspectOptions("run", **options))]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["math_lco_kld", "math_grpo", "math_dapo"])
def test_one_sample_has_nothing_to_be_compared_with(name: str) -> None:
    found = told(tiny(name), samples=1)
    assert found and {key for key, _ in found} == {"--samples"}
    assert any("rollout.samples is 1" in message for _, message in found)


def test_a_batch_of_one() -> None:
    recipe = tiny("math_grpo", "advantage=batch")
    assert told(recipe, samples=1) == told(recipe, prompts=1) == []
    ((key, message),) = told(recipe, samples=1, prompts=1)
    assert key == "--prompts" and "`batch` divides" in message
    single = tiny("math_grpo", "advantage=batch", "rollout.samples=1")
    assert [key for key, _ in told(single, prompts=1)] == ["--prompts"]


@pytest.mark.parametrize("overrides", [(), ("train.inner_epochs=2", "train.minibatches=4", "optim.warmup_steps=5")])
def test_a_size_that_does_not_divide_is_no_mistake(overrides: tuple[str, ...]) -> None:
    recipe = tiny("math_grpo", *overrides)
    assert told(recipe) == told(recipe, prompts=3) == told(recipe, prompts=3, samples=3) == []
    smaller = resized(recipe, InspectOptions("run", prompts=3))
    assert smaller.rollout.prompts == 3 and optimizer_steps(smaller.train) == optimizer_steps(recipe.train)
