"""What makes comparisons of many long runs fast changes none of their numbers."""

from __future__ import annotations

import numpy as np
import pytest
from made_runs import make_run, make_seeds

from cvxrl.comparison.run_directory import RunDirectories
from cvxrl.comparison.score import ratios_to_running_median
from cvxrl.errors import UserError
from cvxrl.recipe.load import load_recipe
from cvxrl.runs.jsonl import read_records


@pytest.mark.parametrize("length", [0, 1, 5, 6, 19, 20, 21, 22, 60])
def test_ratios_are_those_of_one_median_after_the_other(length: int) -> None:
    norm_T = np.random.default_rng(length).exponential(size=length)
    norm_T[:7] *= length % 2  # medians of 0 too
    medians = [float(np.median(norm_T[max(0, t - 20) : t])) for t in range(5, length)]
    expected = [norm / m for norm, m in zip(norm_T[5:], medians, strict=False) if m > 0]
    assert ratios_to_running_median(norm_T).tolist() == expected


def test_a_series_has_the_values_of_its_lines(tmp_path) -> None:
    path = make_run(tmp_path, curve=(0.4, 0.6, 0.8, 0.7), norms=(1, 2.5, 3))
    run, lines = RunDirectories().read(path), read_records(path / "metrics.jsonl")
    for key in ("eval/accuracy", "grad/norm", "tokens/total", "nothing"):
        found = run.series(key)
        expected = [(r["step"], r[key]) for r in lines if key in r]
        assert list(zip(found.step_T, found.value_T, strict=True)) == expected
        assert found.step_T.dtype == found.value_T.dtype == np.float64
    assert run.metrics == {key for line in lines for key in line} - {"step"}
    assert run.last_step == 3


def test_recipes_of_other_seeds_are_those_of_their_files(tmp_path) -> None:
    source, paths = RunDirectories(), make_seeds(tmp_path, "math_grpo", [0.5, 0.6, 0.7])
    for path in paths:
        run = source.read(path)
        assert run.recipe == load_recipe(path / "recipe.yaml").model_dump(mode="json")
        assert not run.doubts, "its digest is the recorded one"


def test_what_differs_beside_the_seed_is_read(tmp_path) -> None:
    source, paths = RunDirectories(), make_seeds(tmp_path, "math_grpo", [0.5, 0.6, 0.7])
    source.read(paths[0])
    edited = paths[1] / "recipe.yaml"
    edited.write_text(edited.read_text().replace("temperature: 1.0", "temperature: 0.5"))
    assert source.read(paths[1]).recipe["rollout"]["temperature"] == 0.5
    assert source.read(paths[0]).recipe["rollout"]["temperature"] == 1.0
    other = paths[2] / "recipe.yaml"
    other.write_text(other.read_text().replace("\nseed: 2\n", "\nseed: 7\n"))
    with pytest.raises(UserError, match=r"says seed 2, recipe\.yaml says 7"):
        source.read(paths[2])
