"""What a comparison may conclude: failures, verdicts and gates against simulated runs whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import quick_if

from cvxrl.comparison.gate import judge, parse_gate
from cvxrl.comparison.options import Options
from cvxrl.comparison.outcome import Outcome, outcome_of
from cvxrl.comparison.result import Comparison, build
from cvxrl.comparison.run import LoggedRun
from cvxrl.comparison.tables import pairs_table, scores_table
from cvxrl.runs.record import Status

QUESTIONS, SAMPLES = 32, 2
RECIPE: dict[str, Any] = {
    "train": {"inner_epochs": 1, "minibatches": 1},
    "optim": {"warmup_steps": 0},
    "eval": {"prompts": QUESTIONS, "samples": SAMPLES},
}


def run(
    method: str,
    seed: int,
    curve: Sequence[float],
    *,
    status: Status = "finished",
    errors: Sequence[float] | None = None,
    recipe: dict[str, Any] | None = None,
) -> LoggedRun:
    """A run whose curve is known, evaluated every step."""
    records: list[dict[str, float | None]] = [{"step": t, "eval/accuracy": v} for t, v in enumerate(curve)]
    for record, error in zip(records, errors or (), strict=False):
        record["eval/stderr"] = error
    return LoggedRun(
        Path(f"{method}/{seed}"),
        method,
        seed,
        steps=max(2, len(curve) - 1),
        records=records,
        status=status,
        diverged_at=len(curve) if status == "diverged" else None,
        recipe=recipe or RECIPE,
    )


def compare(*runs: LoggedRun, **options: Any) -> Comparison:
    return build(runs, Options(resamples=100, **options))


def method(name: str, finals: Sequence[float], first: int = 0) -> list[LoggedRun]:
    return [run(name, seed, (0.1, 0.5, final)) for seed, final in enumerate(finals, first)]


def measured(truth: Sequence[float], rng: np.random.Generator) -> tuple[list[float], list[float]]:
    """Accuracies as an evaluation of 32 x 2 answers finds them, with the errors that it would log."""
    right = rng.binomial(SAMPLES, np.asarray(truth)[:, None], (len(truth), QUESTIONS)) / SAMPLES
    return list(right.mean(axis=1)), list(right.std(axis=1, ddof=1) / QUESTIONS**0.5)


def outcome(curve: Sequence[float], errors: Sequence[float] | None = None, **options: Any) -> Outcome:
    return outcome_of(run("a", 0, curve, errors=errors), "eval/accuracy", Options(**options))


# --- runs that were lost -------------------------------------------------------------------------------------------


def test_two_survivors_of_five_are_never_better() -> None:
    base = method("base", [0.5, 0.52, 0.48, 0.5, 0.51])
    for status in ("failed", "diverged"):
        survivors = [*method("new", [0.95, 0.96]), *(run("new", s, (0.1,), status=status) for s in (2, 3, 4))]
        c = compare(*base, *survivors)
        new = c.summary("new")
        assert new.scores == [0.95, 0.96, 0.0, 0.0, 0.0] and new.failures == 3
        assert c.pairs[0].verdict == "not resolved"
        assert not judge(parse_gate("collapsed(new) == 0"), c).met
        left_out = compare(*base, *survivors, diverged_as="omit")
        assert left_out.pairs[0].verdict == "no verdict" and "left out" in pairs_table(left_out).rows[0][-1]


def test_runs_that_broke_before_their_first_value_are_not_passed_over() -> None:
    """With `last` they have none to count with; who is left is no sample of the method, as with `omit`."""
    base, alive = method("base", [0.5, 0.52, 0.48, 0.5, 0.51]), method("new", [0.95, 0.96, 0.97])
    gone = [run("new", seed, (), status="diverged") for seed in (3, 4)]
    c = compare(*base, *alive, *gone, diverged_as="last")
    assert c.pairs[0].verdict == "no verdict"
    assert any("2 of them have none, so there is no verdict" in warning for warning in c.warnings)
    for gate in ("low(diff(new, base)) > 0", "p(new, base) < 0.05", "low(P(new > base)) > 0.5"):
        assert not judge(parse_gate(gate), c).met, gate
        assert judge(parse_gate(gate), compare(*base, *alive)).met, gate
    assert judge(parse_gate("diff(new, base) > 0"), c).met, "a number that claims nothing beyond these runs"


def test_the_least_of_a_sweep_is_not_that_of_the_values_that_survived() -> None:
    def at(lr: float, final: float | None, seed: int) -> LoggedRun:
        recipe = RECIPE | {"optim": {"warmup_steps": 0, "lr": lr}}
        curve = (0.1,) if final is None else (0.1, 0.5, final)
        return run("a", seed, curve, status="failed" if final is None else "finished", recipe=recipe)

    runs = [at(1e-3, 0.9 + 0.01 * seed, seed) for seed in range(3)] + [at(1e-2, None, seed) for seed in range(3)]
    for text in ("least(a) >= 0.8", "most(a) - least(a) <= 0.03", "most(a) > 0"):
        assert not judge(parse_gate(text), compare(*runs, vary=("optim.lr",), diverged_as="omit")).met, text
    assert judge(parse_gate("most(a) > 0.8"), compare(*runs, vary=("optim.lr",))).met


def test_what_no_score_was_to_reach_was_neither_reached_nor_missed() -> None:
    runs = [
        replace(r, records=[{"step": x["step"], "loss": x["eval/accuracy"]} for x in r.records])
        for r in method("a", [0.5, 0.6])
    ]
    c = compare(*runs, metric="loss")
    for text in ("steps(a) > 100", "tokens(a) > 5", "reached(a) == 0"):
        assert not judge(parse_gate(text), c).met, text
    assert judge(parse_gate("steps(a) > 100"), compare(*runs, metric="loss", threshold=2.0)).met


@pytest.mark.parametrize("level", [1.0, -1.0])
def test_a_fall_is_as_far_below_a_negative_best(level: float) -> None:
    """`task.reward.incorrect: -1` makes rewards negative: -1 to -1.1 is no fall, -1 to -5 is."""

    def ends(final: float) -> bool:
        metric = "reward/mean"
        curve = [level - 0.5, level, level, level, level, final, final, final]
        made = run("a", 0, ())
        made = replace(made, records=[{"step": t, metric: v} for t, v in enumerate(curve)], steps=len(curve) - 1)
        return "fell" in outcome_of(made, metric, Options(metric=metric)).failures

    assert not ends(level - 0.1)
    assert ends(level - 4.0)


def test_nothing_is_best_of_a_metric_that_is_not_known_to_be_better() -> None:
    runs = []
    for lr in (0.01, 0.03):
        for made in method("a", [lr, lr + 0.01]):
            records = [{"step": r["step"], "loss": r["eval/accuracy"]} for r in made.records]
            runs.append(replace(made, records=records, recipe=RECIPE | {"optim": {"warmup_steps": 0, "lr": lr}}))
    c = compare(*runs, metric="loss", vary=("optim.lr",))
    assert c.sensitivities == []
    assert "lowest" in scores_table(c).columns and "worst" not in scores_table(c).columns


def test_tied_scores_of_unknown_error_are_no_proof() -> None:
    for low, high in ((0.1, 0.3), (0.125, 0.375)):  # whose means are rounded, and are not
        runs = [*method("base", [low] * 3), *method("new", [high] * 3)]
        c = compare(*(replace(run, recipe=None) for run in runs))
        assert c.pairs[0].verdict == "no verdict" and not c.summary("new").intervals


def test_unfinished_runs_block_verdicts_and_gates_until_they_are_given_up() -> None:
    runs = [*method("base", [0.5, 0.52, 0.48]), *method("new", [0.95, 0.96]), run("new", 2, (0.1,), status="running")]
    c = compare(*runs)
    verdict = judge(parse_gate("mean(new) > mean(base)"), c)
    assert c.pairs[0].verdict == "unfinished" and not verdict.met and "unfinished (new)" in str(verdict)
    given_up = compare(*runs, lost=True)
    assert given_up.pairs[0].verdict == "not resolved" and given_up.summary("new").kinds["failed"] == 1


# --- one test ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", quick_if((0).__eq__, range(3)))
def test_the_verdict_is_what_the_interval_says(seed: int) -> None:
    rng, said = np.random.default_rng(seed), set()
    for _ in range(60):
        base, spread = rng.uniform(0.3, 0.8), rng.uniform(0.001, 0.1)
        shared = rng.normal(0, spread, 8)
        groups = [
            method(name, list(np.clip(base + shift + shared[:n] * mix + rng.normal(0, spread, n), 0, 1)), first)
            for name, shift, n, mix, first in (
                ("base", 0.0, 5, 1.0, 0),
                ("a", rng.choice([0.0, 0.1]), int(rng.integers(2, 8)), rng.choice([-1.0, 0.0, 1.0]), 0),
                ("b", 0.0, int(rng.integers(2, 8)), 0.0, int(rng.integers(0, 6))),
            )
        ]
        for pair in compare(*(r for g in groups for r in g)).pairs:
            interval = pair.difference_interval
            assert interval is not None and pair.p_adjusted is not None and pair.difference is not None
            excluded = interval.low > 0 or interval.high < 0
            assert (pair.verdict in ("better", "worse")) == excluded == (pair.p_adjusted < 0.05)
            assert pair.verdict != ("worse" if pair.difference > 0 else "better")
            said.add(pair.verdict)
    assert len(said) > 1


def test_shared_seeds_that_go_up_and_down_together_find_a_small_difference() -> None:
    luck = np.array([0.0, 0.1, 0.2, 0.3, 0.05])
    sure = {**RECIPE, "eval": {"prompts": 4000, "samples": 4}}
    base = [run("base", seed, (0.1, 0.4 + gain), recipe=sure) for seed, gain in enumerate(luck)]
    new, other = (
        [run("new", seed, (0.1, 0.43 + gain + 0.01 * (seed % 2)), recipe=sure) for seed, gain in enumerate(luck, first)]
        for first in (0, 5)
    )
    assert compare(*base, *new).pairs[0].verdict == "better"
    apart = compare(*base, *other)
    assert apart.pairs[0].verdict == "not resolved"


def _null_gate_passes(gate: str, seeds: int, trials: int) -> float:
    rng, parsed, passed = np.random.default_rng(seeds), parse_gate(gate), 0
    for _ in range(trials):
        runs = [r for name in "ab" for r in method(name, list(np.clip(rng.normal(0.7, 0.1, seeds), 0, 1)))]
        passed += judge(parsed, build(runs, Options(resamples=2))).met
    return passed / trials


BOUNDS = ["low(diff(a, b)) > 0", "low(P(a > b)) > 0.5"]


@pytest.mark.parametrize(
    ("gate", "seeds"),
    quick_if(lambda *case: case in ((BOUNDS[0], 5), (BOUNDS[1], 2)), product(BOUNDS, [2, 5])),
)
def test_a_gate_on_a_bound_rarely_passes_for_equal_methods(gate: str, seeds: int) -> None:
    assert _null_gate_passes(gate, seeds, 200) <= 0.05


def test_the_point_estimate_that_such_a_gate_replaces_does() -> None:
    assert _null_gate_passes("P(a > b) > 0.9", 2, 100) > 0.1


def test_how_many_seeds_are_needed_has_a_lower_end_only() -> None:
    c = compare(*method("base", [0.5, 0.6, 0.7, 0.4, 0.5]), *method("new", [0.6, 0.5, 0.7, 0.5, 0.6]))
    text = pairs_table(c).rows[0][-1]
    assert text.startswith("not resolved by 5 seeds; how many would cannot be told: ") and text.endswith(" or more")


def test_what_was_not_reached_on_both_sides_meets_nothing() -> None:
    c = compare(*method("a", [0.5, 0.6]), *method("b", [0.5, 0.6]))
    for sign in ("<", "<=", "==", ">=", ">", "!="):
        assert not judge(parse_gate(f"steps(a) {sign} steps(b)"), c).met
    assert judge(parse_gate("steps(a) > 100"), c).met


def test_the_threshold_does_not_depend_on_who_takes_part() -> None:
    a, b = method("a", [0.6, 0.6]), method("b", [1.0, 1.0])
    assert compare(*a).summary("a").reached == compare(*a, *b).summary("a").reached


# --- failures ------------------------------------------------------------------------------------------------------


def test_failures_stand_beside_the_score_with_an_exact_interval() -> None:
    c = compare(*method("a", [0.9, 0.9, 0.9, 0.9, 0.9]))
    interval = c.summary("a").failure_interval
    assert interval is not None and interval.low == 0.0 and interval.high == pytest.approx(0.5218, abs=1e-4)
    assert "0 of 5" in scores_table(c).rows[0] and "[0.00, 0.52]" in scores_table(c).rows[0]


def test_tied_scores_never_have_an_interval_of_no_width() -> None:
    known = compare(*method("a", [0.9] * 5), *method("b", [0.9] * 5))
    for interval in (*known.summary("a").intervals.values(), known.pairs[0].difference_interval):
        assert interval is not None and interval.high > interval.low
    bare = {k: v for k, v in RECIPE.items() if k != "eval"}
    runs = [run(name, seed, (0.1, 0.9), recipe=bare) for name in "ab" for seed in range(3)]
    unknown = compare(*runs)
    assert unknown.summary("a").intervals == {} and unknown.pairs[0].verdict == "no verdict"


STAYS = [(3, 0.02), (21, 0.5), (21, 1.0)]


@pytest.mark.parametrize(
    ("evaluations", "accuracy"),
    quick_if(lambda *case: case in STAYS, product([3, 21], [0.02, 0.1, 0.5, 0.9, 1.0])),
)
def test_a_policy_that_stays_what_it_is_rarely_fails(evaluations: int, accuracy: float) -> None:
    rng, trials = np.random.default_rng(7), 400
    failed = [outcome(*measured([accuracy] * evaluations, rng)).failed for _ in range(trials)]
    assert np.mean(failed) <= 0.05


@pytest.mark.parametrize("evaluations", quick_if((11).__eq__, [3, 11, 21]))
def test_a_fall_from_95_to_50_percent_is_seen(evaluations: int) -> None:
    rng, trials, rise = np.random.default_rng(8), 200, evaluations // 2
    truth = [*np.linspace(0.3, 0.95, rise + 1), *[0.5] * (evaluations - rise - 1)]
    seen = [outcome(*measured(truth, rng)) for _ in range(trials)]
    assert np.mean(["fell" in o.failures for o in seen]) >= 0.95


def test_a_fall_at_the_very_end_is_seen_and_one_bad_evaluation_is_not() -> None:
    high = [0.3, 0.6, *[0.95] * 25]
    assert outcome([*high, 0.5, 0.5, 0.5]).failures == ("fell",)
    assert outcome([*high, 0.5]).failures == ()
    assert outcome([*high, 0.5]).step is None


def test_harm_is_an_evaluation_below_the_start_after_the_warm_up() -> None:
    dipped = [0.5, 0.05, 0.6, 0.9, 0.9]
    assert outcome(dipped).failures == ("harmed",) and outcome(dipped).step == 1
    warm = {**RECIPE, "optim": {"warmup_steps": 4}, "train": {"inner_epochs": 2, "minibatches": 2}}
    assert outcome_of(run("a", 0, dipped, recipe=warm), "eval/accuracy", Options()).failures == ()


@pytest.mark.parametrize("recipe", [{"train": {}}, {"eval": {"prompts": 3}}, {"optim": 3}, {"lr": 1e-3}])
def test_a_recipe_of_another_program_need_not_tell(recipe: dict[str, Any]) -> None:
    assert outcome_of(run("a", 0, [0.1, 0.5, 0.9], recipe=recipe), "eval/accuracy", Options()).failures == ()


def test_what_never_rises_is_unlearned_and_no_failure() -> None:
    assert outcome([0.5, 0.52, 0.49, 0.5]) == Outcome((), None, unlearned=True)
    assert not outcome([0.1, 0.5, 0.9]).unlearned
    assert outcome([0.9, 0.5, 0.1]).unlearned and outcome([0.9, 0.5, 0.1]).failed


@pytest.mark.parametrize(("share", "failed"), [(0.5, False), (0.7, True)])
def test_how_far_a_fall_has_to_be_is_an_option(share: float, failed: bool) -> None:
    assert outcome([0.4, 1.0, 0.6, 0.6], [0.01] * 4, collapse=share).failed == failed


def test_a_metric_without_errors_is_judged_by_its_own_jumps() -> None:
    rng = np.random.default_rng(9)
    steady = [{"step": t, "reward/mean": float(v)} for t, v in enumerate(0.5 + rng.normal(0, 0.05, 60), 1)]
    falling = [{"step": t, "reward/mean": 0.9 if t < 40 else 0.2} for t in range(1, 61)]
    for records, failures in ((steady, ()), (falling, ("fell", "harmed"))):
        noisy = [{**r, "reward/mean": r["reward/mean"] + 0.01 * (-1) ** r["step"]} for r in records]
        one = LoggedRun(Path("a/0"), "a", 0, steps=60, records=noisy)
        assert outcome_of(one, "reward/mean", Options()).failures == failures
