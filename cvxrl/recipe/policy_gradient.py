"""Policy-gradient objectives as recipe sections."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from cvxrl.recipe.base import Coupling, Need, Section, ZeroAdvantage


class GrpoSpec(Section):
    """The clipped ratio surrogate (PPO, arXiv 1707.06347, eq. 7; GRPO with group advantages, arXiv 2402.03300)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "token"
    zero_advantage: ClassVar[ZeroAdvantage] = "no gradient"
    equation: ClassVar[str] = "L = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A),  r = pi(a) / pi_old(a)"
    kind: Literal["grpo"] = Field("grpo", description="Clipped ratio times advantage, as in PPO.")
    clip_low: float = Field(0.2, gt=0, le=1, description="How far the ratio may fall below 1 before it is clipped.")
    clip_high: PositiveFloat = Field(0.2, description="How far the ratio may rise above 1 before it is clipped.")


class GspoSpec(Section):
    """The clipped surrogate of the sequence's geometric-mean ratio (GSPO, arXiv 2507.18071, eq. 5)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "sequence"
    zero_advantage: ClassVar[ZeroAdvantage] = "no gradient"
    equation: ClassVar[str] = "L = -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A),  s = exp(mean_t log r_t)"
    kind: Literal["gspo"] = Field("gspo", description="Clipped sequence ratio times advantage.")
    clip_low: float = Field(3e-4, gt=0, le=1, description="How far the sequence ratio may fall below 1.")
    clip_high: PositiveFloat = Field(4e-4, description="How far the sequence ratio may rise above 1.")


class CispoSpec(Section):
    """Policy gradient with a clipped, detached importance weight (CISPO, arXiv 2506.13585, eq. 4)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "token"
    zero_advantage: ClassVar[ZeroAdvantage] = "no gradient"
    equation: ClassVar[str] = "L = -stopgrad(min(r, ratio_max)) A log pi(a)"
    kind: Literal["cispo"] = Field(
        "cispo", description="Clipped, detached ratio times advantage times log-probability."
    )
    ratio_max: PositiveFloat = Field(5.0, description="Largest importance weight.")


class ReinforceSpec(Section):
    """The plain policy gradient (Williams 1992)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"advantages"})
    coupling: ClassVar[Coupling] = "token"
    zero_advantage: ClassVar[ZeroAdvantage] = "no gradient"
    equation: ClassVar[str] = "L = -A log pi(a)"
    kind: Literal["reinforce"] = Field("reinforce", description="Advantage times log-probability.")


class AwrSpec(Section):
    """Advantage-weighted regression (arXiv 1910.00177, eq. 11)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"advantages"})
    coupling: ClassVar[Coupling] = "token"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    equation: ClassVar[str] = "L = -min(exp(A / beta), weight_max) log pi(a)"
    kind: Literal["awr"] = Field("awr", description="Exponentiated advantage times log-probability.")
    beta: PositiveFloat = Field(1.0, description="Temperature of the weights.")
    weight_max: PositiveFloat = Field(20.0, description="Largest weight.")
