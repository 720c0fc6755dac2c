"""The objectives of the project beside LCO's, their union tagged by `kind`, and terms added to any of them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_serializer

from cvxrl.recipe.base import ADDED, Coupling, FunctionName, Minimum, Need, Section, ZeroAdvantage
from cvxrl.recipe.lco import LcoKldSpec, LcoLchSpec, LcoMseSpec

Estimator = Literal["k1", "k2", "k3"]


class GrpoSpec(Section):
    """The clipped ratio surrogate (PPO, arXiv 1707.06347, eq. 7; GRPO with group advantages, arXiv 2402.03300)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "token"
    zero_advantage: ClassVar[ZeroAdvantage] = "no gradient"
    minimum: ClassVar[Minimum] = "flat"
    equation: ClassVar[str] = "L = -min(r A, clip(r, 1 - clip_low, 1 + clip_high) A),  r = pi(a) / pi_old(a)"
    kind: Literal["grpo"] = Field("grpo", description="Clipped ratio times advantage, as in PPO.")
    clip_low: float = Field(0.2, gt=0, le=1, description="How far the ratio may fall below 1 before it is clipped.")
    clip_high: PositiveFloat = Field(0.2, description="How far the ratio may rise above 1 before it is clipped.")


class GspoSpec(Section):
    """The clipped surrogate of the sequence's geometric-mean ratio (GSPO, arXiv 2507.18071, eq. 5)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "sequence"
    zero_advantage: ClassVar[ZeroAdvantage] = "no gradient"
    minimum: ClassVar[Minimum] = "flat"
    equation: ClassVar[str] = "L = -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A),  s = exp(mean_t log r_t)"
    kind: Literal["gspo"] = Field("gspo", description="Clipped sequence ratio times advantage.")
    clip_low: float = Field(3e-4, gt=0, le=1, description="How far the sequence ratio may fall below 1.")
    clip_high: PositiveFloat = Field(4e-4, description="How far the sequence ratio may rise above 1.")


class CispoSpec(Section):
    """Policy gradient with a clipped, detached importance weight (CISPO, arXiv 2506.13585, eq. 4)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "token"
    zero_advantage: ClassVar[ZeroAdvantage] = "no gradient"
    minimum: ClassVar[Minimum] = "detached"
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
    minimum: ClassVar[Minimum] = "none"
    equation: ClassVar[str] = "L = -A log pi(a)"
    kind: Literal["reinforce"] = Field("reinforce", description="Advantage times log-probability.")


class AwrSpec(Section):
    """Advantage-weighted regression (arXiv 1910.00177, eq. 11)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"advantages"})
    coupling: ClassVar[Coupling] = "token"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    minimum: ClassVar[Minimum] = "has one"
    equation: ClassVar[str] = "L = -min(exp(A / beta), weight_max) log pi(a)"
    kind: Literal["awr"] = Field("awr", description="Exponentiated advantage times log-probability.")
    beta: PositiveFloat = Field(1.0, description="Temperature of the weights.")
    weight_max: PositiveFloat = Field(20.0, description="Largest weight.")


class TpoSpec(Section):
    """Target policy optimization over the samples of a prompt (arXiv 2604.06159)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "group"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    minimum: ClassVar[Minimum] = "has one"
    equation: ClassVar[str] = "L = -G q_i log p_i,  p = softmax_i(log pi(y_i)),  q ~ p_old exp(A / eta)"
    kind: Literal["tpo"] = Field("tpo", description="Cross-entropy to the tilted distribution over a prompt's samples.")
    eta: PositiveFloat = Field(1.0, description="Temperature of the tilt; advantages should be standardised.")


class PmdSpec(Section):
    """Policy mirror descent on the sequence log-ratio (Kimi k1.5, arXiv 2501.12599, eq. 3; mean baseline)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "sequence"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    minimum: ClassVar[Minimum] = "has one"
    equation: ClassVar[str] = "L = tau / 2 (A / tau - log w)^2,  log w = sum_t log r_t"
    kind: Literal["pmd"] = Field("pmd", description="Squared distance of the sequence log-ratio to A / tau.")
    tau: PositiveFloat = Field(1.0, description="Temperature; advantages should be group-centered rewards.")


class DroSpec(Section):
    """Token-level direct reward optimization (arXiv 2405.19107)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "token"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    minimum: ClassVar[Minimum] = "has one"
    equation: ClassVar[str] = "L = -A log pi(a) + beta / 2 (log r)^2"
    kind: Literal["dro"] = Field("dro", description="Policy gradient with a quadratic penalty on the log-ratio.")
    beta: PositiveFloat = Field(1.0, description="Weight of the penalty.")


class RebelSpec(Section):
    """Regression of reward differences, over all pairs of a prompt's samples (REBEL, arXiv 2404.16767, eq. 1)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "group"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    minimum: ClassVar[Minimum] = "has one"
    equation: ClassVar[str] = "L_i = mean_{j != i} ((log w_i - log w_j) - eta (A_i - A_j))^2"
    kind: Literal["rebel"] = Field("rebel", description="Squared error of differences of sequence log-ratios.")
    eta: PositiveFloat = Field(1.0, description="Step size: log-ratio per unit of reward.")


class GvpoSpec(Section):
    """Group variance policy optimization (arXiv 2504.19599, eq. 9)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"old_logprobs", "advantages"})
    coupling: ClassVar[Coupling] = "group"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    minimum: ClassVar[Minimum] = "has one"
    equation: ClassVar[str] = "L_i = G / (2 (G - 1)) ((b log w_i - mean) - (A_i - mean))^2,  b = beta"
    kind: Literal["gvpo"] = Field("gvpo", description="Squared error of centred implicit and true rewards.")
    beta: PositiveFloat = Field(1.0, description="Scale of the implicit reward beta log w.")


class SftSpec(Section):
    """Cross-entropy on the task's demonstrations."""

    needs: ClassVar[frozenset[Need]] = frozenset({"demonstrations"})
    coupling: ClassVar[Coupling] = "token"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    minimum: ClassVar[Minimum] = "has one"
    equation: ClassVar[str] = "L = -log pi(a)  on demonstrations"
    kind: Literal["sft"] = Field("sft", description="Supervised fine-tuning on the task's demonstrations.")


class DpoSpec(Section):
    """Direct preference optimization (arXiv 2305.18290, eq. 7)."""

    needs: ClassVar[frozenset[Need]] = frozenset({"preferences", "reference_logprobs"})
    coupling: ClassVar[Coupling] = "group"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    minimum: ClassVar[Minimum] = "has one"
    equation: ClassVar[str] = "L = -log sigmoid(beta (log w_chosen - log w_rejected)),  log w = sum_t log pi / pi_ref"
    kind: Literal["dpo"] = Field("dpo", description="Logistic loss on log-ratio differences to the starting policy.")
    beta: PositiveFloat = Field(0.1, description="Scale of the implicit reward.")


class QrmSpec(Section):
    """After the authors' verifier: logistic loss on mean log-probabilities, plus cross-entropy (docs/method.md, 2).

    Their cross-entropy is a mean over the chosen tokens of a batch; here every pair counts alike. With one pair per
    batch, their default, the two are the same.
    """

    needs: ClassVar[frozenset[Need]] = frozenset({"preferences"})
    coupling: ClassVar[Coupling] = "group"
    zero_advantage: ClassVar[ZeroAdvantage] = "gradient"
    minimum: ClassVar[Minimum] = "has one"
    equation: ClassVar[str] = (
        "L = -log sigmoid(beta (mean log pi(chosen) - mean log pi(rejected)) - gamma) - sft mean log pi(chosen)"
    )
    kind: Literal["qrm"] = Field("qrm", description="Reference-free preference loss with a margin.")
    beta: PositiveFloat = Field(0.2, description="Scale of the mean log-probability.")
    gamma: NonNegativeFloat = Field(2.0, description="Margin.")
    sft_coefficient: NonNegativeFloat = Field(1.0, description="Weight of the chosen response's cross-entropy.")


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
    minimum: Annotated[Minimum, ADDED] = Field(
        "none",
        description="Whether a line search on the loss has something to stop at: `has one` promises that it is bounded "
        "below and that its gradient is that of its value; of all others `step.kind: line-search` is refused.",
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
