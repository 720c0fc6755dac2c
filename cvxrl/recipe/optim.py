"""Optimizers, as recipe sections."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, Tag, model_validator

from cvxrl.recipe.base import Section


class _Optim(Section):
    """What every optimizer has: a learning rate with warm-up and a schedule, weight decay, gradient clipping."""

    lr: PositiveFloat = Field(1e-4, description="Peak learning rate.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Weight decay, on matrices only.")
    warmup_steps: NonNegativeInt = Field(0, description="Steps over which the learning rate rises linearly from 0.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="Learning rate after warm-up: constant, or falling to `final_lr_fraction` at the end."
    )
    final_lr_fraction: float = Field(0.0, ge=0, le=1, description="Learning rate at the last step, as a share of lr.")
    max_grad_norm: PositiveFloat | None = Field(1.0, description="Clip the global gradient norm; none means never.")
    master_weights: bool = Field(
        False,
        description="Keep fp32 copies of bf16 parameters and optimizer state and step those: in bf16 alone, steps "
        "below 1/256 of a weight round to nothing. Needs `model.dtype: bfloat16`.",
    )


class AdamwSpec(_Optim):
    """AdamW (arXiv 1711.05101): decoupled weight decay, two moments per weight. The default."""

    kind: Literal["adamw"] = Field("adamw", description="AdamW.")
    betas: tuple[float, float] = Field((0.9, 0.999), description="Decay rates of the two moments.")
    eps: PositiveFloat = Field(1e-8, description="Adam's epsilon.")

    @model_validator(mode="after")
    def _betas_below_one(self) -> Self:
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError("`betas` must lie in [0, 1)")
        return self


class SgdSpec(_Optim):
    """Stochastic gradient descent. Weight decay is added to the gradient."""

    kind: Literal["sgd"] = Field("sgd", description="Stochastic gradient descent.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Share of the last step's direction that is kept.")
    nesterov: bool = Field(False, description="Take the gradient's step ahead of the momentum's.")

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("`nesterov` looks ahead along the momentum, which is 0; set `momentum`, e.g. to 0.9")
        return self


class AdafactorSpec(_Optim):
    """Adafactor (arXiv 1804.04235): second moments of a matrix kept as one value per row and column."""

    kind: Literal["adafactor"] = Field("adafactor", description="Adafactor; steps are relative to a weight's size.")
    beta2_decay: float = Field(-0.8, lt=0, description="The second moment's decay rate at step t is 1 - t^beta2_decay.")
    clip_threshold: PositiveFloat = Field(1.0, description="Clip the root mean square of a matrix's step.")
    smallest_scale: PositiveFloat = Field(
        1e-3, description="A matrix's steps are scaled by the root mean square of its weights, or by this if larger."
    )


DEFAULT_OPTIMIZER = "adamw"


def _kind(section: object) -> str:
    kind = section.get("kind", DEFAULT_OPTIMIZER) if isinstance(section, dict) else getattr(section, "kind", None)
    return str(kind)


# AdamW may be left unnamed.
OptimSpec = Annotated[
    Annotated[AdamwSpec, Tag("adamw")] | Annotated[SgdSpec, Tag("sgd")] | Annotated[AdafactorSpec, Tag("adafactor")],
    Discriminator(_kind),
]
