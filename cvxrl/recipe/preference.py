"""Learning from demonstrations and preference pairs, as recipe sections."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from cvxrl.recipe.base import Coupling, Need, Section, ZeroAdvantage


class SftSpec(Section):
    """Cross-entropy on the task's demonstrations."""

    needs: ClassVar[frozenset[Need]] = frozenset({"demonstrations"})
    coupling: ClassVar[Coupling] = "token"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    equation: ClassVar[str] = "L = -log pi(a)  on demonstrations"
    kind: Literal["sft"] = Field("sft", description="Supervised fine-tuning on the task's demonstrations.")


class DpoSpec(Section):
    """Direct preference optimization (arXiv 2305.18290, eq. 7)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"preferences", "reference_logprobs"})
    coupling: ClassVar[Coupling] = "group"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    equation: ClassVar[str] = "L = -log sigmoid(beta (log w_chosen - log w_rejected)),  log w = sum_t log pi / pi_ref"
    kind: Literal["dpo"] = Field("dpo", description="Logistic loss on log-ratio differences to the starting policy.")
    beta: PositiveFloat = Field(0.1, description="Scale of the implicit reward.")


class QrmSpec(Section):
    """The authors' verifier: logistic loss on mean log-probabilities, plus cross-entropy (docs/method.md, 2)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"preferences"})
    coupling: ClassVar[Coupling] = "group"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    equation: ClassVar[str] = (
        "L = -log sigmoid(beta (mean log pi(chosen) - mean log pi(rejected)) - gamma) - sft mean log pi(chosen)"
    )
    kind: Literal["qrm"] = Field("qrm", description="Reference-free preference loss with a margin.")
    beta: PositiveFloat = Field(0.2, description="Scale of the mean log-probability.")
    gamma: NonNegativeFloat = Field(2.0, description="Margin.")
    sft_coefficient: NonNegativeFloat = Field(1.0, description="Weight of the chosen response's cross-entropy.")
