"""How rewards become advantages, as recipe sections."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat

from cvxrl.recipe.base import FunctionName, Section
from cvxrl.recipe.expand import PATH

Credit = Literal["sequence", "values", "verifier"]


class AdvantageSection(Section):
    """What an estimator works from.

    Attributes:
        needs_group: whether it compares the samples of a prompt.
        credit: `sequence`: one number per completion; `values`: per token, from a value head; `verifier`: per token and
            candidate token, from a language model.
    """

    needs_group: ClassVar[bool] = False
    credit: ClassVar[Credit] = "sequence"


class RewardAdvantage(AdvantageSection):
    """The reward itself, on every token of the response."""

    kind: Literal["reward"] = Field("reward", description="The reward itself on every response token.")


class GroupAdvantage(AdvantageSection):
    """Reward standardised within the samples of a prompt (GRPO, arXiv 2402.03300)."""

    needs_group: ClassVar[bool] = True
    kind: Literal["group"] = Field("group", description="(R - group mean) / (group std + eps).")
    eps: PositiveFloat = Field(1e-4, description="Added to the group's standard deviation (n - 1 in its denominator).")


class GroupCenteredAdvantage(AdvantageSection):
    """Reward minus the mean of the prompt's samples (Dr. GRPO, arXiv 2503.20783)."""

    needs_group: ClassVar[bool] = True
    kind: Literal["group-centered"] = Field("group-centered", description="R - group mean.")


class RlooAdvantage(AdvantageSection):
    """Reward minus the mean of the prompt's other samples (RLOO, arXiv 2402.14740)."""

    needs_group: ClassVar[bool] = True
    kind: Literal["rloo"] = Field("rloo", description="R - mean of the other samples of the prompt.")


class BatchAdvantage(AdvantageSection):
    """Reward standardised over the whole step (REINFORCE++, arXiv 2501.03262)."""

    kind: Literal["batch"] = Field("batch", description="(R - step mean) / (step std + eps).")
    eps: PositiveFloat = Field(1e-4, description="Added to the step's standard deviation (n - 1 in its denominator).")


class GaeAdvantage(AdvantageSection):
    """Generalised advantage estimation over tokens (arXiv 1506.02438, eq. 16), with a learned value head."""

    credit: ClassVar[Credit] = "values"
    kind: Literal["gae"] = Field("gae", description="Token-level, from a value head; the reward arrives at the end.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount per token.")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda: 0 is one-step, 1 is Monte Carlo.")
    whiten: bool = Field(True, description="Standardise the advantages over the tokens of the step.")
    eps: PositiveFloat = Field(1e-8, description="Added to that standard deviation.")
    value_coefficient: PositiveFloat = Field(0.5, description="Weight of the value loss beside the policy's.")
    value_clip: PositiveFloat | None = Field(
        0.2, description="Clip of the value's change, as in PPO; none means never."
    )


class DenseAdvantage(AdvantageSection):
    """What the verifier-based estimators share: scores on the k most probable tokens of the rollout policy."""

    credit: ClassVar[Credit] = "verifier"
    verifier: Annotated[str, PATH] = Field(
        min_length=1, description="Verifier policy: directory, Hub id, `package:NAME/DIR`."
    )
    k: int = Field(
        5, ge=2, description="Candidate tokens per position: the most probable ones and the sampled one; at least 2."
    )
    center: bool = Field(True, description="Subtract the mean over the candidates (authors: not for lco-kld).")
    eps: PositiveFloat = Field(1e-6, description="Added to the standard deviation over the candidates.")


class DenseLogprobAdvantage(DenseAdvantage):
    """Log-probabilities of a preference-trained language model, standardised over the candidates of each position."""

    kind: Literal["dense-logprob"] = Field("dense-logprob", description="Log-probabilities of a verifier.")


class DenseDpoAdvantage(DenseAdvantage):
    """Implicit reward log pi_DPO - log pi_ref (arXiv 2305.18290, eq. 5), standardised over the candidates."""

    kind: Literal["dense-dpo"] = Field("dense-dpo", description="Log-ratio of a DPO policy to its reference.")
    reference: Annotated[str, PATH] = Field(
        min_length=1, description="Reference policy that the DPO policy was trained from."
    )


class CallableAdvantage(Section):
    """A function of yours: `(rewards_PG, **options)` -> advantages of the same shape."""

    credit: ClassVar[Credit] = "sequence"
    kind: Literal["callable"] = Field("callable", description="What a python function makes of the rewards.")
    function: FunctionName = Field(
        description="`module:function`; called with the rewards, a tensor [P, G] whose row p holds the samples of "
        "prompt p, and `options`; returns the advantages, [P, G]. The working directory is searched too."
    )
    options: dict[str, Any] = Field({}, description="Keyword arguments of the function.")
    needs_group: bool = Field(False, description="Whether it compares the samples of a prompt.")


AdvantageSpec = Annotated[
    RewardAdvantage
    | GroupAdvantage
    | GroupCenteredAdvantage
    | RlooAdvantage
    | BatchAdvantage
    | GaeAdvantage
    | DenseLogprobAdvantage
    | DenseDpoAdvantage
    | CallableAdvantage,
    Field(discriminator="kind"),
]
