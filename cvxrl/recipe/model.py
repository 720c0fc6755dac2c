"""Where the policy comes from and which of its weights are trained, as recipe sections."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from cvxrl.recipe.base import Section
from cvxrl.recipe.expand import PATH

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
        description="Share of the inputs of A that is dropped while training. Sampling and evaluation drop "
        "nothing, nor do the probabilities before an update where a rollout pays for several optimizer steps; where it "
        "pays for one, the pass that is trained on tells them too, and drops. How a step is split into micro-batches "
        "then matters.",
    )
    targets: Literal["all-linear"] | tuple[ModuleName, ...] = Field(
        "all-linear",
        description="Modules to adapt, by the end of their names, e.g. [q_proj, v_proj]; `all-linear` is every linear "
        "layer but the output layer and routers, and the fused experts of families of which PEFT knows them.",
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


class ScratchSpec(Section):
    """A small Qwen3-style decoder with a one-character-per-token tokenizer, initialised at random."""

    alphabet: str = Field(min_length=2, description="Characters of the tokenizer, one token each.")
    hidden_size: PositiveInt = Field(128, description="Width of the residual stream.")
    layers: PositiveInt = Field(4, description="Number of decoder layers.")
    heads: PositiveInt = Field(4, description="Attention heads.")
    kv_heads: PositiveInt = Field(4, description="Key/value heads.")
    head_dim: PositiveInt = Field(32, description="Width of an attention head.")
    intermediate_size: PositiveInt = Field(384, description="Width of the gated feed-forward layer.")
    context: PositiveInt = Field(128, description="Longest sequence, in tokens.")
    init_std: PositiveFloat = Field(0.02, description="Standard deviation of the initial weights.")


class ModelSpec(Section):
    """Where the policy comes from: a Hugging Face directory or id, a GGUF file, an installed package, or nothing."""

    path: Annotated[str | None, PATH] = Field(
        None,
        description="Hugging Face directory or Hub id, or `package:NAME/DIR` for files that an installed package "
        "ships. A path to a `.gguf` file is read as GGUF.",
    )
    revision: str | None = Field(None, description="Hub revision; none means the default branch.")
    gguf_file: str | None = Field(None, description="Name of a GGUF file inside `path`.")
    scratch: ScratchSpec | None = Field(None, description="Initialise a new policy instead of loading one.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Data type of the parameters.")
    end_token: str | None = Field(
        None, description="Token that ends a text, instead of the tokenizer's own; needed where that has none."
    )
    pad_token: str | None = Field(
        None,
        description="Token for padding, instead of the tokenizer's own; without either it is the end token. Padding is "
        "masked and changes no number.",
    )
    trust_remote_code: bool = Field(False, description="Allow the model repository to run its own Python code.")
    allow_pickle: bool = Field(
        False,
        description="Allow weights in PyTorch's pickle format where there are no safetensors: reading them can run "
        "code that their author put there.",
    )
    dropout: bool = Field(
        False,
        description="Whether what the policy's configuration leaves to chance (dropout of every kind, layers, router "
        "noise) is on in the training pass. Off, ratios begin at 1 and preference margins at 0.",
    )
    adapter: Annotated[str | None, PATH] = Field(
        None,
        description="Directory of a LoRA adapter in PEFT's format (safetensors), e.g. the `adapter` folder of a run. "
        "It is merged into the weights when they are loaded.",
    )
    lora: LoraSpec | None = Field(
        None,
        description="Train low-rank adapters beside the weights instead of the weights. Checkpoints hold the adapter "
        "alone; the final policy is merged. Needs the extra `lora`.",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.scratch is None):
            raise ValueError("give exactly one of `model.path` (load a policy) and `model.scratch` (start a new one)")
        if self.scratch is not None and (self.lora or self.adapter):
            raise ValueError("`model.lora` and `model.adapter` adapt a policy that was trained: give `model.path`")
        return self
