"""Which objectives are measured side by side, what they are called, and the target that they are held against."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import ROOT, tiny

from cvxrl.inspection.objectives import select_objectives, unnamed_own, yardstick

LCO_MSE = str(ROOT / "recipes" / "math_lco_mse.yaml")


def named(folder: Path, name: str, beta: float) -> str:
    """A recipe of the user's own, by file."""
    folder.mkdir()
    file = folder / "recipe.yaml"
    file.write_text(f"extends: {ROOT}/recipes/math_lco_kld.yaml\nname: {name}\nobjective: {{beta: {beta}}}\n")
    return str(file)


def test_the_yardstick_is_the_first_lco_target() -> None:
    recipe = tiny("math_grpo")
    assert yardstick(select_objectives(["grpo", "reinforce"], recipe, False), recipe).beta == 1
    assert yardstick(select_objectives(["grpo", LCO_MSE], recipe, False), recipe).beta == 5
    own = tiny("math_lco_kld")
    assert yardstick(select_objectives(None, own, False), own).shift == "drift-free"


@pytest.mark.parametrize("names", [["grpo", "reinforce"], ["grpo", LCO_MSE], [LCO_MSE, "lco-kld"]])
def test_the_yardstick_is_that_of_the_run_also_where_its_objective_is_not_named(names: list[str]) -> None:
    recipe = tiny("math_lco_kld", "objective.beta=0.25")
    assert yardstick(select_objectives(names, recipe, False), recipe).beta == 0.25


def test_objectives_of_one_name_are_told_apart(tmp_path: Path) -> None:
    recipe = tiny("math_lco_kld", "objective.beta=0.25")
    names = [named(tmp_path / "a", "mine", 2), named(tmp_path / "b", "mine", 3), named(tmp_path / "c", "lco-kld", 4)]
    found = select_objectives([*names, "lco-kld"], recipe, False)
    assert [objective.label for objective in found] == ["lco-kld", "mine", "mine (2)", "lco-kld (2)"]
    assert [objective.recipe.objective.beta for objective in found] == [0.25, 2, 3, 4]  # type: ignore[union-attr]
    assert [objective.own for objective in found] == [True, False, False, False]


def test_one_thing_under_two_names_is_measured_once() -> None:
    found = select_objectives(["lco-mse", "math_lco_mse", LCO_MSE], tiny("math_grpo"), False)
    assert [objective.label for objective in found] == ["lco-mse", "math_lco_mse"]


def test_the_drift_is_that_of_the_run_also_where_its_objective_is_not_named() -> None:
    recipe, ppo = tiny("math_grpo"), tiny("math_ppo")
    own = unnamed_own(select_objectives(["lco-kld"], recipe, False), recipe, False)
    assert own is not None and own.own and own.recipe is recipe
    assert unnamed_own(select_objectives(["lco-kld", "grpo"], recipe, False), recipe, False) is None
    others = select_objectives(["lco-kld"], ppo, True)
    assert unnamed_own(others, ppo, True) is not None
    assert unnamed_own(others, ppo, False) is None  # it cannot be computed
