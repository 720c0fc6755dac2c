"""Every objective of the project, joined in one union tagged by `kind`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_serializer

from cvxrl.recipe.base import Coupling, FunctionName, Need, Section, ZeroAdvantage
from cvxrl.recipe.lco import LcoKldSpec, LcoLchSpec, LcoMseSpec, LcoSpec
from cvxrl.recipe.policy_gradient import AwrSpec, CispoSpec, GrpoSpec, GspoSpec, ReinforceSpec
from cvxrl.recipe.preference import DpoSpec, QrmSpec, SftSpec
from cvxrl.recipe.regression import DroSpec, GvpoSpec, PmdSpec, RebelSpec, TpoSpec


class CallableObjective(Section):
    """A function of yours: `(batch, **options)` -> loss per token."""

    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    kind: Literal["callable"] = Field("callable", description="The loss per token that a python function returns.")
    function: FunctionName = Field(
        description="`module:function`; called with a `cvxrl.objectives.batch.TokenBatch` of N response tokens and "
        "`options`, returns a tensor [N] or an `ObjectiveOutput`. The working directory is searched too."
    )
    options: dict[str, Any] = Field({}, description="Keyword arguments of the function.")
    needs: frozenset[Need] = Field(
        frozenset(),
        description="Inputs of the function beside the current logits, the sampled tokens and their advantages: "
        "`old_logits`, `old_logprobs`, `reference_logprobs`, `group_advantages`; or what it learns from instead of "
        "rollouts: `demonstrations`, `preferences`. A field of the batch that is not listed may be none.",
    )
    coupling: Coupling = Field(
        "token",
        description="What the loss of a token depends on and so must share a forward pass: nothing else, the tokens of "
        "its response (`sequence`), or all responses of its prompt (`group`).",
    )
    equation: str = Field("L by a function", description="The loss in words, for `--dry-run` and reports.")

    @field_serializer("needs")
    def _in_order(self, needs: frozenset[Need]) -> list[str]:
        return sorted(needs)


ObjectiveSpec = Annotated[
    LcoKldSpec
    | LcoMseSpec
    | LcoLchSpec
    | GrpoSpec
    | GspoSpec
    | CispoSpec
    | ReinforceSpec
    | AwrSpec
    | TpoSpec
    | PmdSpec
    | DroSpec
    | RebelSpec
    | GvpoSpec
    | SftSpec
    | DpoSpec
    | QrmSpec
    | CallableObjective,
    Field(discriminator="kind"),
]

__all__ = [
    "AwrSpec",
    "CallableObjective",
    "CispoSpec",
    "DpoSpec",
    "DroSpec",
    "GrpoSpec",
    "GspoSpec",
    "GvpoSpec",
    "LcoKldSpec",
    "LcoLchSpec",
    "LcoMseSpec",
    "LcoSpec",
    "ObjectiveSpec",
    "PmdSpec",
    "QrmSpec",
    "RebelSpec",
    "ReinforceSpec",
    "SftSpec",
    "TpoSpec",
]
