"""The LCO objectives as recipe sections: divergence x target x tilt x shift x support."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from cvxrl.recipe.base import Coupling, Minimum, Need, Section, ZeroAdvantage


class ExactSupport(Section):
    """The whole vocabulary."""

    kind: Literal["exact"] = Field("exact", description="The whole vocabulary, as in the paper's equation.")


class TopKSupport(Section):
    """An approximation: the most probable old tokens, the sampled one, and one bucket for the rest. Not convex."""

    kind: Literal["top-k"] = Field("top-k", description="Top k old tokens, the sampled token, and the tail's mass.")
    k: PositiveInt = Field(32, description="Tokens kept besides the sampled one.")


class TopKFillSupport(Section):
    """The authors' code: old logits outside the top k are replaced; a sampled token outside gets no target mass."""

    kind: Literal["top-k-fill"] = Field("top-k-fill", description="Top k old logits; all others are set to `fill`.")
    k: PositiveInt = Field(5, description="Tokens kept.")
    fill: float = Field(-100.0, description="Logit of every other token.")
    half: bool = Field(True, description="Round the kept logits to float16, as that code stores them.")


SupportSpec = Annotated[ExactSupport | TopKSupport | TopKFillSupport, Field(discriminator="kind")]


class LcoSpec(Section):
    """What the LCO objectives share: the target pi* ~ pi_old exp(A / beta)."""

    coupling: ClassVar[Coupling] = "token"
    kind: str

    beta: PositiveFloat = Field(
        1.0, description="Temperature of the tilt; a larger beta keeps the target nearer to the rollout policy."
    )
    negative_beta_scale: PositiveFloat = Field(
        1.0,
        description="Factor on beta where the advantage is negative. The paper's equation is 1; the authors' "
        "rule-reward code uses 100. Large values leave little but the push towards good samples, so that sampled "
        "tokens drift up instead of down (docs/method.md, 1).",
    )
    target: Literal["frozen", "moving"] = Field(
        "frozen",
        description="`frozen`: the target is built on the rollout's logits, the same through all inner epochs (the "
        "paper's equation). `moving`: on the current logits at every forward pass (the authors' code for mse and lch); "
        "there is no fixed point then.",
    )
    tilt: Literal["exponential", "linear"] = Field(
        "exponential",
        description="`exponential`: q = sigmoid(logit p0 + A / b). `linear` (ours, not the paper's): q = p0 + (A / b) "
        "(1 - p0), clipped, which keeps the expected weight of zero-mean advantages at zero.",
    )
    linear_margin: float = Field(
        1e-4,
        gt=0,
        lt=0.5,
        description="The linear tilt keeps q within [margin, 1 - margin], or at p0 if p0 lies outside.",
    )
    shift: Literal["none", "drift-free"] = Field(
        "none",
        description="`drift-free` (ours, not the paper's): shift the tilts of a group so that a token that has nothing "
        "to do with the reward stays where it was, averaged over the group.",
    )

    @property
    def needs(self) -> frozenset[Need]:
        """Inputs of the objective."""
        always: frozenset[Need] = frozenset({"old_logits", "advantages"})
        return always | {"group_advantages"} if self.shift == "drift-free" else always

    @property
    def zero_advantage(self) -> ZeroAdvantage:
        """The target of such a token is the policy that sampled it, or the current one."""
        return "no gradient on-policy"

    @property
    def minimum(self) -> Minimum:
        """A divergence from a frozen target is never negative; a moving target goes along with the policy."""
        return "has one" if self.target == "frozen" else "detached"

    @property
    def dense_equation(self) -> str:
        """Loss per token with dense advantages, which tilt every candidate token of a set S."""
        raise NotImplementedError

    @property
    def _dense_target_text(self) -> str:
        base = {"frozen": "old", "moving": "stopgrad(current)"}[self.target]
        betas = f"{self.beta:g} (A >= 0) or {self.negative_beta_scale * self.beta:g} (A < 0)"
        return f"t_i = A_i / b,  b = beta = {betas},  base: {base},  S: the candidates"

    @property
    def _target_text(self) -> str:
        base = {"frozen": "old", "moving": "stopgrad(current)"}[self.target]
        tilt = {"exponential": "A / b", "linear": "logit(clip(p0 + (A / b)(1 - p0))) - logit(p0)"}[self.tilt]
        shift = " + c (drift-free)" if self.shift == "drift-free" else ""
        betas = f"{self.beta:g} (A >= 0) or {self.negative_beta_scale * self.beta:g} (A < 0)"
        return f"t = {tilt}{shift},  b = beta = {betas},  base: {base}"


class LcoKldSpec(LcoSpec):
    """Forward KL from the target to the policy (LCO-KLD, arXiv 2603.00963)."""

    kind: Literal["lco-kld"] = Field("lco-kld", description="Forward KL to the tilted rollout policy.")
    support: SupportSpec = Field(ExactSupport(), description="Tokens over which target and policy are compared.")

    @property
    def zero_advantage(self) -> ZeroAdvantage:
        """Filled-in logits make a target that differs from the policy even without an advantage."""
        return "gradient" if isinstance(self.support, TopKFillSupport) else super().zero_advantage

    @property
    def equation(self) -> str:
        """Loss per token."""
        names = {"exact": "", "top-k": " on top-k + tail (approximation)", "top-k-fill": " on top-k (authors' code)"}
        return f"L = KL(pi* || pi){names[self.support.kind]},  pi* ~ pi_base exp(t e_a),  {self._target_text}"

    @property
    def dense_equation(self) -> str:
        """See `LcoSpec`."""
        return f"L = KL(pi* || pi),  pi*_i ~ pi_base,i exp(t_i) on S, 0 outside,  {self._dense_target_text}"


def target_of(spec: object) -> LcoKldSpec:
    """The target that an LCO objective regresses onto, over the whole vocabulary; of others: beta 1 on both signs."""
    if not isinstance(spec, LcoSpec):
        return LcoKldSpec()
    return LcoKldSpec(
        beta=spec.beta,
        negative_beta_scale=spec.negative_beta_scale,
        tilt=spec.tilt,
        linear_margin=spec.linear_margin,
        shift=spec.shift,
    )


class LcoMseSpec(LcoSpec):
    """Squared error of the sampled token's logit (LCO-MSE, arXiv 2603.00963)."""

    kind: Literal["lco-mse"] = Field("lco-mse", description="Squared distance of the sampled logit to its target.")

    @property
    def equation(self) -> str:
        """Loss per token."""
        return f"L = (z_a - z*_a)^2,  z*_a = z_base,a + t,  {self._target_text}"

    @property
    def dense_equation(self) -> str:
        """See `LcoSpec`."""
        return f"L = sum_i in S (z_i - z*_i)^2,  z*_i = z_base,i + t_i,  {self._dense_target_text}"


class LcoLchSpec(LcoSpec):
    """Log-cosh error of the sampled token's logit (LCO-LCH, arXiv 2603.00963)."""

    kind: Literal["lco-lch"] = Field("lco-lch", description="Log-cosh distance of the sampled logit to its target.")

    @property
    def equation(self) -> str:
        """Loss per token."""
        return f"L = log cosh(z_a - z*_a),  z*_a = z_base,a + t,  {self._target_text}"

    @property
    def dense_equation(self) -> str:
        """See `LcoSpec`."""
        return f"L = sum_i in S log cosh(z_i - z*_i),  z*_i = z_base,i + t_i,  {self._dense_target_text}"
