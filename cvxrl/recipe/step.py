"""How much of each optimizer step is taken, as recipe sections, and which losses a line search can stop at."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from cvxrl.recipe.base import ADDED, Minimum, Section
from cvxrl.recipe.objective import CallableObjective, ObjectiveSpec, RegularizerSpec


class FixedStep(Section):
    """The optimizer's step as it is: its length is the learning rate's."""

    kind: Literal["fixed"] = Field("fixed", description="The whole step, unseen.")

    @property
    def words(self) -> str:
        """What happens, in a line."""
        return "fixed: the whole of what the optimizer takes"


class SearchedStep(Section):
    """What step controls share: the shares of the optimizer's step d that are tried, x + a d by falling a."""

    max_share: PositiveFloat = Field(
        1.0, description="Largest share of the optimizer's step; above 1 a step may grow beyond the learning rate's."
    )
    min_share: PositiveFloat = Field(
        1e-6, description="Smallest share; a step of which not even that is accepted is refused."
    )
    shrink: float = Field(0.5, gt=0, lt=1, description="Factor from a share that is not accepted to the next one.")
    growth: float = Field(
        2.0, ge=1, description="Factor from the share that was accepted last to the first one of the next step."
    )
    max_evaluations: PositiveInt = Field(
        12,
        description="Most shares tried in a step, one forward pass each. If none is accepted the step is refused, and "
        "the next one starts one `shrink` lower.",
    )
    every: Annotated[PositiveInt, ADDED] = Field(
        1,
        description="Search in one optimizer step of so many; those between take the share that it accepted, untried. "
        "After a refused step the next one is searched.",
    )

    @model_validator(mode="after")
    def _bounds_in_order(self) -> Self:
        if self.min_share > self.max_share:
            raise ValueError("`min_share` is above `max_share`; lower it")
        return self

    @property
    def _shares(self) -> str:
        return (
            f"a from {self.growth:g} x the last one, at most {self.max_share:g}, down by {self.shrink:g}; at most "
            f"{self.max_evaluations} evaluations{'' if self.every == 1 else f', in one step of {self.every}'}"
        )


class LineSearchStep(SearchedStep):
    """Armijo backtracking on the objective's loss of the optimizer step, against the frozen target."""

    kind: Literal["line-search"] = Field(
        "line-search", description="The largest share that lowers the loss as its slope promises."
    )
    sufficient_decrease: float = Field(
        0.1, gt=0, lt=1, description="c in L(x + a d) <= L(x) + c a <g, d>: share of the promised decrease."
    )
    tolerance: NonNegativeFloat | None = Field(
        None,
        description="How far above that line a loss may lie. None is what rounding can do to a difference of two "
        "losses at the number format and depth of the policy (docs/steps.md).",
    )
    allow_unbounded: bool = Field(
        False,
        description="Search on a loss that has no minimum to stop at, as a control; otherwise that is refused.",
    )

    @property
    def words(self) -> str:
        """What happens, in a line."""
        c = f"{self.sufficient_decrease:g}"
        return f"line search: the largest a with L(x + a d) <= L(x) + {c} a <g, d>; {self._shares}"


class TrustRegionStep(SearchedStep):
    """Backtracking until the policy has moved no further than a given KL."""

    kind: Literal["trust-region"] = Field(
        "trust-region", description="The largest share that keeps the KL of the step within a size."
    )
    kl: PositiveFloat = Field(
        1e-3,
        description="Largest KL(before || after) of an optimizer step in nats, over the vocabulary, mean over its "
        "response tokens.",
    )
    sequences: Annotated[PositiveInt | None, ADDED] = Field(
        None,
        description="Sequences of an optimizer step that the KL is measured on, drawn anew for each: an estimate, for "
        "less work. None is all of them; so is a number that there are not more than.",
    )

    @property
    def words(self) -> str:
        """What happens, in a line."""
        drawn = "" if self.sequences is None else f" on {self.sequences} drawn sequences"
        return f"trust region: the largest a with KL(before || after) <= {self.kl:g}{drawn}; {self._shares}"


StepSpec = Annotated[FixedStep | LineSearchStep | TrustRegionStep, Field(discriminator="kind")]

_WHY: dict[Minimum, str] = {
    "none": "falls without end as the probability of a token that it pushes down goes to 0",
    "flat": "is flat beyond the clip, so that nothing says how far to go: a token that is clipped, or has no "
    "advantage, may end anywhere",
    "detached": "is not what its gradient descends, since a part of it follows the policy without a gradient",
}


def unsearchable(step: StepSpec, objective: ObjectiveSpec, regularizer: RegularizerSpec) -> str | None:
    """Why a line search would have nothing to stop at; None where it has, or where that is asked for by name."""
    if not isinstance(step, LineSearchStep) or step.allow_unbounded:
        return None
    if isinstance(objective, CallableObjective) and objective.minimum == "none":
        return f"`{objective.function}` promises none (where its loss is bounded below, say objective.minimum: has one)"
    if objective.minimum != "has one":
        return f"the loss of `{objective.kind}` {_WHY[objective.minimum]}"
    if regularizer.kl_coefficient and regularizer.kl_estimator == "k1":
        return f"the KL estimate `k1` as a loss {_WHY['none']}"
    return None
