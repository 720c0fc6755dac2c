"""Low-rank adapters, as a recipe section."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cvxrl.recipe.base import Section

ModuleName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*$")]


class LoraSpec(Section):
    """LoRA (arXiv 2106.09685): each adapted matrix W becomes W + scaling * B A, and only A and B are trained."""

    rank: PositiveInt = Field(16, description="Rows of A, columns of B.")
    alpha: PositiveFloat = Field(32.0, description="Numerator of the scaling.")
    scaling: Literal["rank", "sqrt-rank"] = Field(
        "rank", description="Denominator of the scaling: the rank, or its square root (rsLoRA, arXiv 2312.03732)."
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the inputs of A that is dropped while training. Sampling, evaluation and the "
        "probabilities before an update drop nothing; how a step is split into micro-batches then matters.",
    )
    targets: Literal["all-linear"] | tuple[ModuleName, ...] = Field(
        "all-linear",
        description="Modules to adapt, by the end of their names, e.g. [q_proj, v_proj]; `all-linear` is every linear "
        "layer but the output layer.",
    )
    init: Literal["kaiming", "gaussian"] = Field(
        "kaiming",
        description="Distribution of A at the start: uniform as in the authors' code, or normal with standard "
        "deviation 1 / rank. B starts at zero, so that the policy starts as it was loaded.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="Data type of A and B; in bfloat16 small updates round to nothing."
    )

    @model_validator(mode="after")
    def _some_target(self) -> Self:
        if not self.targets:
            raise ValueError("`targets` is empty; name modules, or leave it out for every linear layer")
        return self
