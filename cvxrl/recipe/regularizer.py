"""Terms added to the token loss of any objective, as a recipe section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat

from cvxrl.recipe.base import Section

Estimator = Literal["k1", "k2", "k3"]


class RegularizerSpec(Section):
    """KL to the starting policy and an entropy bonus; both are off unless a coefficient says otherwise."""

    kl_coefficient: NonNegativeFloat = Field(
        0.0, description="Weight of the KL to the policy that training started from; 0 loads no reference."
    )
    kl_estimator: Estimator = Field(
        "k3",
        description="k1: log-ratio (as a loss its expected gradient is zero); k2: half its square; k3: never negative.",
    )
    entropy_coefficient: NonNegativeFloat = Field(0.0, description="Weight of the entropy that is added to the reward.")

    @property
    def equation(self) -> str:
        """What is added to the loss per token."""
        terms = []
        if self.kl_coefficient:
            terms.append(f" + {self.kl_coefficient:g} {self.kl_estimator}(pi || pi_ref)")
        if self.entropy_coefficient:
            terms.append(f" - {self.entropy_coefficient:g} H(pi)")
        return "".join(terms)
