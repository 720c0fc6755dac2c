"""Which share of a step is accepted, from numbers alone: closed forms on a parabola, bounds, warm start, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
from helpers import tiny

from cvxrl.engine.step_control import Accepted, backtrack, confine, first_share, search
from cvxrl.errors import UserError
from cvxrl.recipe.base import section_classes
from cvxrl.recipe.digest import differences, digest
from cvxrl.recipe.objective import ObjectiveSpec
from cvxrl.recipe.step import LineSearchStep, TrustRegionStep


class Parabola:
    """L(x + a d) for L(x) = 3 + x^2 / 2 at x = 1 along d = -reach: the minimum is at a = 1 / reach."""

    def __init__(self, reach: float) -> None:
        self.reach, self.tried = reach, list[float]()

    def __call__(self, share: float) -> float:
        self.tried.append(share)
        return 3.0 + 0.5 * (1.0 - share * self.reach) ** 2

    def search(self, last: float | None = None, **fields: Any) -> Accepted:
        return search(self, 3.5, -self.reach, LineSearchStep(**fields), last)


# Armijo with c holds on the parabola exactly up to a = 2 (1 - c) / reach.
@pytest.mark.parametrize(
    ("reach", "fields", "share", "evaluations"),
    [
        (1.0, {}, 1.0, 1),
        (1.79, {}, 1.0, 1),  # 1.8 / 1.79 > 1
        (1.81, {}, 0.5, 2),
        (100.0, {}, 2.0**-6, 7),  # 0.018 >= 1/64
        (100.0, {"shrink": 0.1}, 0.01, 3),
        (1.81, {"sufficient_decrease": 0.05}, 1.0, 1),  # 1.9 / 1.81
        (1.0, {"sufficient_decrease": 0.9}, 0.125, 4),  # 0.2
        (0.25, {"max_share": 4.0}, 1.0, 1),  # without a last share the step is tried as it is
    ],
)
def test_the_largest_share_of_the_sequence_that_decreases_enough(
    reach: float, fields: dict[str, Any], share: float, evaluations: int
) -> None:
    loss = Parabola(reach)
    found = loss.search(**fields)
    assert (found.share, found.evaluations) == pytest.approx((share, evaluations))
    assert found.value == loss(found.share) and found.last == found.share and not found.refused
    line = LineSearchStep(**fields)
    holds = [loss(a) <= 3.5 - line.sufficient_decrease * a * reach for a in loss.tried[:evaluations]]
    assert holds == [False] * (evaluations - 1) + [True]


def test_a_search_starts_above_the_last_share_and_grows_up_to_the_largest() -> None:
    small = Parabola(0.2)  # accepts up to a = 9
    shares, last = [], 0.125
    for _ in range(7):
        last = small.search(last, max_share=3.0).share
        shares.append(last)
    assert shares == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0, 3.0] and len(small.tried) == 7
    assert first_share(LineSearchStep(growth=1.5), 0.5) == 0.75
    assert first_share(LineSearchStep(max_share=0.25), None) == 0.25


def test_a_step_that_leads_nowhere_down_is_refused_unseen() -> None:
    for slope in (0.0, 1e-9, math.nan):
        found = search(_never, 1.0, slope, LineSearchStep(), 0.25)
        assert found == Accepted(0.0, 0, None, 0.25) and found.refused


def _never(share: float) -> float:
    raise AssertionError(f"evaluated at {share}")


def test_a_refused_search_ends_at_its_bounds_and_starts_lower_the_next_time() -> None:
    def flat(share: float) -> float:
        tried.append(share)
        return 1.0

    tried: list[float] = []
    few = search(flat, 1.0, -1.0, LineSearchStep(max_evaluations=3))
    assert few.refused and few.value is None and tried == [1.0, 0.5, 0.25] and few.evaluations == 3
    assert first_share(LineSearchStep(), few.last) == 0.5
    tried.clear()
    low = search(flat, 1.0, -1.0, LineSearchStep(min_share=0.3), 0.5)
    assert low.refused and tried == [1.0, 0.5]
    assert search(flat, 1.0, -1.0, LineSearchStep(), tolerance=1.0).share == 1.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_share_with_a_value_that_is_not_finite_is_not_accepted(bad: float) -> None:
    def loss(share: float) -> float:
        return bad if share > 0.3 else 1.0 - share

    assert search(loss, 1.0, -1.0, LineSearchStep()).share == 0.25
    assert confine(lambda share: bad if share > 0.3 else 0.0, TrustRegionStep()).share == 0.25


def test_a_region_is_not_left() -> None:
    """KL grows as the square of the share: 0.1 a^2 <= 1e-3 up to a = 0.1."""
    found = confine(lambda share: 0.1 * share**2, TrustRegionStep())
    assert (found.share, found.evaluations, found.value) == (0.0625, 5, pytest.approx(0.1 / 256))
    # Warm: twice that is outside, once it is inside.
    assert confine(lambda share: 0.1 * share**2, TrustRegionStep(), found.last).evaluations == 2
    assert confine(lambda share: 0.1 * share**2, TrustRegionStep(kl=0.1)).share == 1.0
    assert backtrack(lambda share: share, lambda *_: False, TrustRegionStep(max_evaluations=1), None).refused


FLAT = {"grpo": "flat beyond the clip", "gspo": "flat beyond the clip"}
NONE = {"reinforce": "without end", "cispo": "not what its gradient descends"}


def refusal(name: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        tiny(name, "step.kind=line-search", *overrides)
    (problem,) = caught.value.problems
    assert problem.key == "step.kind" and "allow_unbounded" in problem.remedy
    return problem.message


@pytest.mark.parametrize("kind", [*FLAT, *NONE])
def test_a_loss_without_a_minimum_is_refused_with_the_reason(kind: str) -> None:
    assert {**FLAT, **NONE}[kind] in refusal(f"math_{kind}")
    allowed = tiny(f"math_{kind}", "step={kind: line-search, allow_unbounded: true}")
    assert allowed.step.kind == "line-search"
    assert tiny(f"math_{kind}", "step.kind=trust-region").step.kind == "trust-region"


def test_what_else_has_no_minimum_is_refused() -> None:
    assert "flat" in refusal("math_ppo") and "flat" in refusal("math_dapo") and "flat" in refusal("math_dr_grpo")
    assert "detached" not in refusal("math_lco_mse", "objective.target=moving")
    assert "`k1`" in refusal("math_lco_kld", "regularizer={kl_coefficient: 0.1, kl_estimator: k1}")
    tiny("math_lco_kld", "step.kind=line-search", "regularizer={kl_coefficient: 0.1, entropy_coefficient: 0.1}")
    loss = "function: my_losses:mine"
    assert "`my_losses:mine` promises none" in refusal("math_grpo", f"objective={{kind: callable, {loss}}}")
    assert "flat" in refusal("math_grpo", f"objective={{kind: callable, {loss}, minimum: flat}}")
    tiny("math_grpo", "step.kind=line-search", f"objective={{kind: callable, {loss}, minimum: has one}}")


SEARCHED = ["lco_kld", "lco_mse", "lco_lch", "dro", "tpo", "pmd", "rebel", "gvpo", "awr"]


@pytest.mark.parametrize("name", [*(f"math_{kind}" for kind in SEARCHED), "base_sft", "pref_dpo", "pref_qrm"])
def test_a_loss_with_a_minimum_is_searched(name: str) -> None:
    assert "L(x + a d)" in tiny(name, "step.kind=line-search").step.words


def test_every_objective_says_whether_it_has_a_minimum() -> None:
    assert all(hasattr(spec, "minimum") or "minimum" in spec.model_fields for spec in section_classes(ObjectiveSpec))


def test_a_fixed_step_is_no_part_of_a_digest_and_another_is() -> None:
    plain, spelled = tiny("math_lco_kld"), tiny("math_lco_kld", "step.kind=fixed")
    searched = tiny("math_lco_kld", "step.kind=line-search")
    assert digest(plain) == digest(spelled) != digest(searched)
    assert ("step.kind", "fixed", "line-search") in differences(plain, searched)
    assert differences(plain, tiny("math_lco_kld", "rollout.lag=1")) == [("rollout.lag", 0, 1)]
    values = plain.model_dump(mode="json")
    del values["step"]
    assert differences(values, plain) == [] and ("step.kind", None, "line-search") in differences(values, searched)


@pytest.mark.parametrize("wrong", ["shrink: 1", "growth: 0.5", "max_share: 0", "min_share: 2", "max_evaluations: 0"])
def test_fields_out_of_range_are_refused(wrong: str) -> None:
    for kind in ("line-search", "trust-region"):
        with pytest.raises(UserError):
            tiny("math_lco_kld", f"step={{kind: {kind}, {wrong}}}")
