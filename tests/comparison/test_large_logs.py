"""What makes comparisons of many long runs fast changes none of their numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from made_runs import make_run, make_seeds

from cvxrl.comparison.figures.curves import _RESAMPLES, _band
from cvxrl.comparison.figures.strands import Strand
from cvxrl.comparison.group import Group
from cvxrl.comparison.options import Options
from cvxrl.comparison.outcome import _measured_errors
from cvxrl.comparison.run import LoggedRun
from cvxrl.comparison.run_directory import RunDirectories
from cvxrl.comparison.score import ratios_to_running_median
from cvxrl.comparison.summary import generator, summarise
from cvxrl.errors import UserError
from cvxrl.recipe.digest import differences
from cvxrl.recipe.load import load_recipe
from cvxrl.runs.jsonl import read_records
from cvxrl.stats.aggregate import iqm, mean, median
from cvxrl.stats.bootstrap import bootstrap_interval


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


def made(score: float, seed: int, **metrics: float) -> LoggedRun:
    return LoggedRun(Path(f"run-{seed}"), "method", seed, 1, [{"step": 1, "eval/accuracy": score, **metrics}])


def test_aggregates_that_share_resamples_have_the_intervals_of_their_own() -> None:
    scores = np.random.default_rng(0).random(7)
    group = Group("a", "a", None, tuple(made(s, i) for i, s in enumerate(scores)), ())
    options = Options(resamples=200)
    found = summarise(group, options, None)
    assert set(found.intervals) == set(found.plain_intervals) == {"mean", "median", "iqm"}
    for name, of in (("mean", mean), ("median", median), ("iqm", iqm)):
        for corrected, intervals in ((True, found.intervals), (False, found.plain_intervals)):
            rng = generator(options, "interval", "a")
            alone = bootstrap_interval(
                scores[:, None], of, rng, confidence=options.confidence, resamples=200, corrected=corrected
            )
            assert intervals[name] == alone.within(*options.bounds)


def test_a_band_has_at_every_step_the_interval_of_that_step_alone() -> None:
    value_NT = np.random.default_rng(1).random((6, 3))
    options, group = Options(), Group("a", "a", None, (), ())
    strand = Strand("a", group, summarise(group, options, None), "black", "-", "o", 1.0)
    low_T, high_T = _band(strand, value_NT, options)
    for t in range(3):
        rng = generator(options, "band", "a")
        alone = bootstrap_interval(
            value_NT[:, t, None], mean, rng, confidence=options.confidence, resamples=_RESAMPLES
        ).within(*options.bounds)
        assert (low_T[t], high_T[t]) == (alone.low, alone.high)


def test_errors_are_the_logged_ones_of_the_same_step_and_no_smaller_than_the_answers_allow() -> None:
    logged = [(0, 0.5, None), (10, 0.6, 0.2), (20, 1.0, 0.001), (30, 0.7, 0.3)]
    records = [{"step": t, "eval/accuracy": a, "eval/stderr": e} for t, a, e in logged]
    recipe = {"eval": {"prompts": 8, "samples": 2}}
    run = LoggedRun(Path("run"), "a", 0, 30, [*records, {"step": 40, "eval/stderr": 9.0}], recipe=recipe)
    shares = [(a * 16 + 2) / 20 for _, a, _ in logged]
    least = [(share * (1 - share) / 20) ** 0.5 for share in shares]
    assert 0.001 < least[2] < 0.2, "a logged error that is too small"
    expected = [least[0], 0.2, least[2], 0.3]
    assert _measured_errors(run, "eval/accuracy", run.series("eval/accuracy")) == pytest.approx(expected, rel=1e-15)
    unknown = LoggedRun(Path("run"), "a", 0, 30, records)
    found = _measured_errors(unknown, "eval/accuracy", unknown.series("eval/accuracy"))
    assert found.tolist() == [0.0, 0.2, 0.001, 0.3]


def test_recipes_differ_in_a_section_that_only_one_has_and_in_values_that_are_the_same_beside() -> None:
    one = {"seed": 0, "name": "a", "optim": {"lr": 1e-3, "betas": [0.9]}, "model": {"lora": {"rank": 4}}}
    other = {"seed": 0, "name": "a", "optim": {"lr": 1e-4, "betas": [0.9]}, "model": {"lora": None}, "extra": 1}
    assert differences(one, other) == [("extra", None, 1), ("model.lora.rank", 4, None), ("optim.lr", 1e-3, 1e-4)]
