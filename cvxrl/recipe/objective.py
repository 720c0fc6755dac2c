"""Objectives and advantages as recipe sections: one small frozen spec each, joined in unions tagged by `kind`."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat

from cvxrl.recipe.base import Section

Need = Literal["old_logits", "old_logprobs", "advantages", "demonstrations"]


class LcoSpec(Section):
    """What the three LCO objectives share: the tilt of the frozen target pi* ~ pi_old exp(A / beta)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logits", "advantages"})
    beta: PositiveFloat = Field(
        1.0, description="Temperature of the tilt; a larger beta keeps the target nearer to the rollout policy."
    )
    negative_beta_scale: PositiveFloat = Field(
        1.0,
        description="Factor on beta where the advantage is negative. The paper's equation is 1; the authors' "
        "rule-reward code uses 100. Large values damp the push away from bad samples.",
    )


class LcoKldSpec(LcoSpec):
    """Forward KL from the target to the policy, over the whole vocabulary."""

    equation: ClassVar[str] = (
        "L = KL(pi* || pi),  pi* ~ pi_old exp(A e_a / b),  b = beta (A >= 0) or scale * beta (A < 0)"
    )
    kind: Literal["lco-kld"] = Field("lco-kld", description="Forward KL to the tilted rollout policy.")


class LcoMseSpec(LcoSpec):
    """Squared error of the sampled token's logit."""

    equation: ClassVar[str] = "L = (z_a - z*_a)^2,  z*_a = z_old,a + A / b,  b = beta (A >= 0) or scale * beta (A < 0)"
    kind: Literal["lco-mse"] = Field("lco-mse", description="Squared distance of the sampled logit to its target.")


class LcoLchSpec(LcoSpec):
    """Log-cosh error of the sampled token's logit."""

    equation: ClassVar[str] = (
        "L = log cosh(z_a - z*_a),  z*_a = z_old,a + A / b,  b = beta (A >= 0) or scale * beta (A < 0)"
    )
    kind: Literal["lco-lch"] = Field("lco-lch", description="Log-cosh distance of the sampled logit to its target.")


class GrpoSpec(Section):
    """The clipped ratio surrogate (PPO, arXiv 1707.06347, eq. 7; GRPO with group advantages, arXiv 2402.03300)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    equation: ClassVar[str] = "L = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A),  r = pi(a) / pi_old(a)"
    kind: Literal["grpo"] = Field("grpo", description="Clipped ratio times advantage.")
    clip_low: float = Field(0.2, gt=0, le=1, description="How far the ratio may fall below 1 before it is clipped.")
    clip_high: PositiveFloat = Field(0.2, description="How far the ratio may rise above 1 before it is clipped.")


class ReinforceSpec(Section):
    """The plain policy gradient (Williams 1992)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"advantages"})
    equation: ClassVar[str] = "L = -A log pi(a)"
    kind: Literal["reinforce"] = Field("reinforce", description="Advantage times log-probability.")


class SftSpec(Section):
    """Cross-entropy on the task's demonstrations."""

    needs: ClassVar[frozenset[Need]] = frozenset({"demonstrations"})
    equation: ClassVar[str] = "L = -log pi(a)  on demonstrations"
    kind: Literal["sft"] = Field("sft", description="Supervised fine-tuning on the task's demonstrations.")


ObjectiveSpec = Annotated[
    LcoKldSpec | LcoMseSpec | LcoLchSpec | GrpoSpec | ReinforceSpec | SftSpec, Field(discriminator="kind")
]


class RewardAdvantage(Section):
    """The reward itself, on every token of the response."""

    needs_group: ClassVar[bool] = False
    kind: Literal["reward"] = Field("reward", description="The reward itself on every response token.")


class GroupAdvantage(Section):
    """Reward standardised within the samples of a prompt (GRPO, arXiv 2402.03300)."""

    needs_group: ClassVar[bool] = True
    kind: Literal["group"] = Field("group", description="(R - group mean) / (group std + eps).")
    eps: PositiveFloat = Field(1e-4, description="Added to the group's standard deviation (n - 1 in its denominator).")


class GroupCenteredAdvantage(Section):
    """Reward minus the mean of the prompt's samples (Dr. GRPO, arXiv 2503.20783)."""

    needs_group: ClassVar[bool] = True
    kind: Literal["group-centered"] = Field("group-centered", description="R - group mean.")


class RlooAdvantage(Section):
    """Reward minus the mean of the prompt's other samples (RLOO, arXiv 2402.14740)."""

    needs_group: ClassVar[bool] = True
    kind: Literal["rloo"] = Field("rloo", description="R - mean of the other samples of the prompt.")


AdvantageSpec = Annotated[
    RewardAdvantage | GroupAdvantage | GroupCenteredAdvantage | RlooAdvantage, Field(discriminator="kind")
]
