"""Regression onto the KL-regularised optimum, as recipe sections: LCO's neighbours."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, PositiveFloat

from cvxrl.recipe.base import Coupling, Need, Section, ZeroAdvantage


class TpoSpec(Section):
    """Target policy optimization over the samples of a prompt (arXiv 2604.06159)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "group"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    equation: ClassVar[str] = "L = -G q_i log p_i,  p = softmax_i(log pi(y_i)),  q ~ p_old exp(A / eta)"
    kind: Literal["tpo"] = Field("tpo", description="Cross-entropy to the tilted distribution over a prompt's samples.")
    eta: PositiveFloat = Field(1.0, description="Temperature of the tilt; advantages should be standardised.")


class PmdSpec(Section):
    """Policy mirror descent on the sequence log-ratio (Kimi k1.5, arXiv 2501.12599, eq. 3; mean baseline)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "sequence"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    equation: ClassVar[str] = "L = tau / 2 (A / tau - log w)^2,  log w = sum_t log r_t"
    kind: Literal["pmd"] = Field("pmd", description="Squared distance of the sequence log-ratio to A / tau.")
    tau: PositiveFloat = Field(1.0, description="Temperature; advantages should be group-centered rewards.")


class DroSpec(Section):
    """Token-level direct reward optimization (arXiv 2405.19107)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "token"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    equation: ClassVar[str] = "L = -A log pi(a) + beta / 2 (log r)^2"
    kind: Literal["dro"] = Field("dro", description="Policy gradient with a quadratic penalty on the log-ratio.")
    beta: PositiveFloat = Field(1.0, description="Weight of the penalty.")


class RebelSpec(Section):
    """Regression of reward differences, over all pairs of a prompt's samples (REBEL, arXiv 2404.16767, eq. 1)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "group"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    equation: ClassVar[str] = "L_i = mean_{j != i} ((log w_i - log w_j) - eta (A_i - A_j))^2"
    kind: Literal["rebel"] = Field("rebel", description="Squared error of differences of sequence log-ratios.")
    eta: PositiveFloat = Field(1.0, description="Step size: log-ratio per unit of reward.")


class GvpoSpec(Section):
    """Group variance policy optimization (arXiv 2504.19599, eq. 9)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "group"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    equation: ClassVar[str] = "L_i = G / (2 (G - 1)) ((b log w_i - mean) - (A_i - mean))^2,  b = beta"
    kind: Literal["gvpo"] = Field("gvpo", description="Squared error of centred implicit and true rewards.")
    beta: PositiveFloat = Field(1.0, description="Scale of the implicit reward beta log w.")
