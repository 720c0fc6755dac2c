"""What happens where the sampler gives a rollout's tokens other probabilities than the trainer, as recipe sections."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from cvxrl.recipe.base import Section


class StopMismatch(Section):
    """The run ends where they differ by more than rounding explains (`train.ratio_tolerance`)."""

    kind: Literal["stop"] = Field("stop", description="The run ends with exit code 2, wherever it is looked at.")


class LogMismatch(Section):
    """The run goes on as if they were equal; how far they are apart is logged at every step."""

    kind: Literal["log"] = Field("log", description="Only logged, under `mismatch/`; costs a forward pass a rollout.")


class CorrectMismatch(Section):
    """Truncated importance weights: each token's loss times the trainer's probability over the sampler's, capped."""

    kind: Literal["correct"] = Field(
        "correct", description="Logged, and corrected by an importance weight on the loss (docs/method.md, section 5)."
    )
    level: Literal["token", "sequence"] = Field(
        "token", description="Ratio of each token's probabilities, or of its whole response's."
    )
    cap: PositiveFloat | None = Field(2.0, description="Largest ratio; none is no bound: unbiased, of any variance.")
    floor: NonNegativeFloat = Field(0.0, description="Smallest ratio; with `outside: drop` alone.")
    outside: Literal["truncate", "drop"] = Field(
        "truncate", description="What lies outside: weighs as much as the cap (TIS), or nothing (IcePop, MIS)."
    )

    @model_validator(mode="after")
    def _bounds_that_hold(self) -> Self:
        if self.floor and self.outside == "truncate":
            raise ValueError("`floor` does nothing with `outside: truncate`; leave it out, or set outside to drop")
        if self.cap is not None and self.floor >= self.cap:
            raise ValueError("`floor` is not below `cap`; lower it")
        if self.cap is None and self.outside == "drop" and not self.floor:
            raise ValueError("`outside: drop` has no bound to lie outside of; set `cap` or `floor`")
        return self


MismatchSpec = Annotated[StopMismatch | LogMismatch | CorrectMismatch, Field(discriminator="kind")]
