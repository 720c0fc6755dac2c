"""benchmarks/time_to_accuracy.py: what a run is said to have needed, and the ratios of the sides."""

import sys
from typing import Any

import pytest
from helpers import ROOT

sys.path.append(str(ROOT / "benchmarks"))

from accuracy_settings import CHOSEN, GRIDS
from time_to_accuracy import is_due, ratios, recipe_of, summarize
from trl_runs import loss_settings


def rows(*accuracies: float) -> list[dict[str, float]]:
    """Evaluations after 0, 4, 8, ... optimizer steps of 2 processor seconds each."""
    return [
        {"step": 4 * i, "eval/accuracy": a, "eval/stderr": 0.01, "time/cpu_s": 8.0 * i, "time/total_s": 9.0 * i}
        for i, a in enumerate(accuracies)
    ]


def test_a_run_that_goes_on_or_falls_back_needed_what_it_had_used_when_it_got_there() -> None:
    found = summarize(rows(0.3, 0.6, 0.92, 0.85, 0.95), 0.9, 32)
    assert (found["fate"], found["steps"], found["completions"]) == ("there", 8, 256)
    assert (found["cpu_s"], found["wall_s"], found["accuracy"], found["end"]) == (16.0, 18.0, 0.92, 0.95)


@pytest.mark.parametrize(("accuracies", "fate"), [((0.3, 0.6, 0.89), "censored"), ((0.3, 0.6, 0.09), "fell")])
def test_a_run_that_never_gets_there_is_no_time(accuracies: tuple[float, ...], fate: str) -> None:
    assert summarize(rows(*accuracies), 0.9, 32)["fate"] == fate


def test_ratios_are_of_means_and_seed_by_seed_and_none_without_every_run() -> None:
    def run(side: str, seed: int, seconds: float, fate: str = "there") -> dict[str, Any]:
        used = dict.fromkeys(("cpu_s", "wall_s", "completions", "steps"), seconds)
        return {"side": side, "seed": seed, "fate": fate, **used}

    runs = [run("cvxrl", 0, 1.0), run("trl", 0, 4.0), run("trl", 1, 4.0), run("cvxrl", 1, 3.0)]
    assert ratios(runs, "trl")["cpu_s"] == {"of_means": 0.5, "least": 0.25, "most": 0.75}
    assert ratios([*runs, run("cvxrl", 2, 9.0, "censored"), run("trl", 2, 4.0)], "trl") == {}


def test_a_setting_is_a_recipe_and_overrides() -> None:
    recipe = recipe_of("math_grpo train.minibatches=4 optim.lr=2e-4 rollout.prompts=32", 7, 2560)
    assert (recipe.train.minibatches, recipe.train.steps, recipe.seed, recipe.optim.lr) == (4, 10, 7, 2e-4)
    assert [is_due(recipe, rollout) for rollout in (1, 2, 3)] == [False, False, True]
    assert recipe_of("math_dapo train.steps=3", 0, 2560).train.steps == 3


@pytest.mark.parametrize(("grid", "count"), [("first", 20), ("second", 32)])
def test_both_sides_were_tuned_over_as_many_settings(grid: str, count: int) -> None:
    assert {len(set(settings)) for settings in GRIDS[grid].values()} == {count}
    for settings in GRIDS[grid].values():
        assert len({recipe_of(setting, 0, 2560).model_dump_json() for setting in settings}) == count


def test_those_chosen_are_settings_of_a_grid() -> None:
    assert all(any(CHOSEN[side] in grid[side] for grid in GRIDS.values()) for side in ("cvxrl", "trl"))


def test_the_peer_is_told_the_same_loss() -> None:
    def told(setting: str) -> dict[str, Any]:
        return loss_settings(recipe_of(setting, 0, 2560))

    plain = {"loss_type": "dapo", "scale_rewards": "group", "importance_sampling_level": "token", "beta": 0.0}
    assert told("math_grpo objective.clip_high=0.4") == {**plain, "epsilon": 0.2, "epsilon_high": 0.4}
    assert told("math_dr_grpo")["loss_type"] == "dr_grpo" and told("math_dr_grpo")["scale_rewards"] == "none"
    assert told("math_gspo")["loss_type"] == "grpo" and told("math_gspo")["importance_sampling_level"] == "sequence"
    assert told("math_cispo") == {"loss_type": "cispo", "scale_rewards": "group", "epsilon_high": 5.0, "beta": 0.0}
    for without in ("math_dro", "math_rloo", "math_lco_kld"):
        with pytest.raises(KeyError):
            told(without)
