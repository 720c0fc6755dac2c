"""`reading: authors-code` sets what that code does and says where a recipe departs from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import SilentSink, tiny

from cvxrl.engine.session import run_training
from cvxrl.recipe.reading import departures
from cvxrl.runs.directory import RunDir

AUTHORS = "reading=authors-code"
FOREIGN = """
extends: math_lco_kld
name: foreign
rollout: {temperature: 0.7}
reduction: sequence-mean
regularizer: {kl_coefficient: 0.1, entropy_coefficient: 0.01}
optim: {kind: sgd, lr: 0.5, momentum: 0.9, weight_decay: 0.1}
objective: {kind: lco-kld, tilt: linear, linear_margin: 0.01, shift: drift-free, support: {kind: top-k-fill, k: 9}}
"""


def test_nothing_that_the_code_fixes_is_inherited(tmp_path: Path) -> None:
    file = tmp_path / "foreign.yaml"
    file.write_text(FOREIGN)
    from cvxrl.recipe.load import load_recipe

    recipe = load_recipe(file, [AUTHORS])
    assert departures(recipe) == []
    assert (recipe.reduction, recipe.rollout.temperature) == ("token-mean", 1.0)
    assert recipe.regularizer.kl_coefficient == recipe.regularizer.entropy_coefficient == 0
    assert (recipe.objective.tilt, recipe.objective.shift, recipe.objective.support.k) == ("exponential", "none", 5)  # type: ignore[union-attr]
    assert (recipe.optim.kind, recipe.optim.weight_decay, recipe.optim.lr) == ("adamw", 0.0, 0.5)


@pytest.mark.parametrize(
    ("name", "more", "objective", "center"),
    [
        ("math_lco_kld_dense", (), {"target": "frozen", "support": {"kind": "exact"}}, False),
        (
            "math_lco_mse",
            ("advantage={kind: dense-dpo, verifier: a/b, reference: c/d, k: 7}",),
            {"target": "moving"},
            True,
        ),
    ],
)
def test_dense_advantages_stay_dense(name: str, more: tuple[str, ...], objective: dict[str, Any], center: bool) -> None:
    """The trainers with a verifier have one beta for both signs, and the verifier's candidates for a support."""
    plain, recipe = tiny(name, *more), tiny(name, AUTHORS, *more)
    assert recipe.advantage.kind == plain.advantage.kind and recipe.advantage.center is center  # type: ignore[union-attr]
    assert recipe.task.reward == plain.task.reward
    assert recipe.objective.negative_beta_scale == 1.0  # type: ignore[union-attr]
    found = recipe.objective.model_dump()
    assert {key: found[key] for key in objective} == objective


def test_a_plan_says_where_a_recipe_departs_from_the_code(cvxrl: Any) -> None:
    arguments = ("--set", AUTHORS, "--set", "reduction=sequence-mean", "--set", "advantage.kind=group", "--dry-run")
    text = " ".join(cvxrl("train", "math_lco_kld", *arguments).out.split())
    assert "but for reduction sequence-mean (theirs: token-mean), advantage.kind group (theirs: reward)" in text
    assert "beta and optim.lr are this recipe's" in text and "sign descent" in text
    notes = json.loads(cvxrl("train", "math_lco_kld", *arguments, "--json").out)["plan"]["notes"]
    assert len(notes) == 2 and all("note " + note in text for note in notes)
    assert "note " not in cvxrl("train", "math_lco_kld", "--dry-run").out


def test_a_field_that_the_rewards_leave_idle_is_noted() -> None:
    assert "never negative" in tiny("math_lco_kld_x100", "advantage.kind=reward").notes[0]
    assert tiny("math_lco_kld").notes == []


def test_several_optimizer_steps_are_no_sign_descent() -> None:
    assert any("sign descent" in note for note in tiny("math_lco_kld", AUTHORS).notes)
    assert not any("sign descent" in note for note in tiny("math_lco_kld", AUTHORS, "train.minibatches=16").notes)


def test_a_kind_that_is_no_text_is_told_by_its_key(cvxrl: Any, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("extends: math_lco_kld\nreading: authors-code\nobjective: {kind: {a: 1}}\n")
    done = cvxrl("train", "r.yaml", "--dry-run")
    assert done.code == 2 and "objective.kind: unknown kind" in done.err


@pytest.mark.slow
def test_a_run_begins_with_its_notes(tmp_path: Path) -> None:
    class Listening(SilentSink):
        def __init__(self) -> None:
            super().__init__()
            self.said: list[str] = []

        def event(self, text: str) -> None:
            self.said.append(text)

    recipe, sink = tiny("math_lco_kld", AUTHORS, "train.steps=1", "eval.every=0"), Listening()
    run_training(recipe, RunDir.of(tmp_path, recipe), sink, "new")
    notes = [f"note: {note}" for note in recipe.notes]
    assert notes and [said for said in sink.said if said.startswith("note: ")] == notes
    assert sink.said.index(notes[-1]) <= len(notes), "before the first step"
