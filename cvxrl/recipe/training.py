"""The step as recipe sections: how completions are sampled, how often they are learned from, and by which optimizer."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from cvxrl.recipe.base import ADDED, AMENDABLE, NEUTRAL, Section
from cvxrl.recipe.engine import EngineSpec
from cvxrl.recipe.mismatch import MismatchSpec, StopMismatch


class RolloutSpec(Section):
    """How completions are sampled. One step uses `prompts` x `samples` completions."""

    prompts: PositiveInt = Field(32, description="Prompts per step.")
    samples: PositiveInt = Field(8, description="Completions per prompt (the group).")
    max_new_tokens: PositiveInt = Field(64, description="Longest completion, in tokens.")
    temperature: PositiveFloat = Field(
        1.0, description="Sampling temperature; the trained policy is softmax(z / temperature)."
    )
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus mass. Training needs 1.0; see docs/method.md.")
    batch: PositiveInt | None = Field(None, description="Completions decoded at a time; none means all at once.")
    engine: EngineSpec = Field(
        "auto",
        description="What computes the logits while sampling, in training and evaluation: `transformers` is the "
        "model's own forward pass; `auto` writes it out with fewer operations for plain decoders (Llama, Qwen and "
        "their kin) and is `transformers` for all others; `static` writes it out with operations of fixed shape, which "
        "CUDA replays as a graph (no gain on a CPU; other models are refused). Equal up to rounding. A section of "
        "kind `vllm` has vLLM sample (docs/vllm.md).",
    )
    rounds: PositiveInt = Field(
        1,
        description="Dynamic sampling (DAPO): sample up to this many times `prompts` new prompts, until that many "
        "groups hold both right and wrong replies; groups without a contrast fill what is missing. 1 is never.",
    )
    lag: Annotated[NonNegativeInt, ADDED] = Field(
        0,
        description="Train on rollouts of an earlier policy: that of so many steps ago, or at first the one that "
        "training starts from. Targets, ratios, advantages and a critic's values are those of the policy that "
        "sampled. So many rollouts are kept waiting, in memory and in checkpoints.",
    )
    old_logprobs: Annotated[Literal["trainer", "sampler"], ADDED] = Field(
        "trainer",
        description="Where a rollout is used for several optimizer steps, or later: whose log-probabilities of the "
        "policy that sampled are in the ratio. `trainer`: its own, from a forward pass over the rollout. `sampler`: "
        "those that came with the tokens, without that pass; what the two differ by is in the ratio then.",
    )
    mismatch: Annotated[MismatchSpec, ADDED] = Field(
        StopMismatch(),
        description="What happens where the sampler gives tokens other probabilities than the trainer, as a server or "
        "another number format may.",
    )
    ahead: Annotated[bool, NEUTRAL] = Field(
        False,
        description="With `lag`: make the newest rollout beside the updates, in a second thread, by a second copy of "
        "the weights that training moves. The same numbers in less time where a core, a device or a server is idle "
        "(docs/performance.md).",
    )


class TrainSpec(Section):
    """The outer loop: steps, passes over a rollout, and how a step is split to fit memory."""

    steps: Annotated[PositiveInt, AMENDABLE] = Field(
        100,
        description="Rollouts (outer steps). `--resume` can change it where no learning rate of the steps that are "
        "done depends on it (`optim.schedule: constant`, or within the warm-up).",
    )
    inner_epochs: PositiveInt = Field(1, description="Passes over each rollout.")
    minibatches: PositiveInt = Field(
        1, description="Optimizer steps per pass; each takes an equal share of the rollout."
    )
    micro_batch: PositiveInt | None = Field(
        None, description="Sequences per forward pass; none means all at once. Cannot change the gradient."
    )
    micro_batch_tokens: PositiveInt | None = Field(
        None,
        description="Instead of `micro_batch`: most tokens per forward pass, padding included. Sequences are sorted by "
        "length and packed into that. Cannot change the gradient either.",
    )
    gradient_checkpointing: bool = Field(
        False,
        description="Keep only every layer's input for the backward pass and compute the rest again: less memory, "
        "about a third more time. Prompts then run once per response. Cannot change the gradient beyond rounding.",
    )
    loss: Literal["full-logits", "chunked"] = Field(
        "full-logits",
        description="`chunked` takes losses, log-probabilities and entropies from hidden states a few tokens at a "
        "time, so that no tensor of all tokens times the vocabulary exists (docs/linear.md). Equal up to rounding.",
    )
    chunk_tokens: PositiveInt | None = Field(
        None, description="Tokens per chunk of a `chunked` loss; none means as many as fit 160 MiB."
    )
    reset_optimizer: bool = Field(
        False, description="Drop the optimizer's state before every rollout's updates, as the authors' code does."
    )
    precision: Literal["fp32", "bf16"] = Field("fp32", description="bf16 runs the forward pass under autocast.")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where to train; auto takes CUDA if present.")
    deterministic: bool = Field(
        True,
        description="Ask for deterministic algorithms on CUDA, which can be slower; on the CPU a run repeats itself "
        "either way.",
    )
    ratio_tolerance: Annotated[PositiveFloat | None, AMENDABLE] = Field(
        None,
        description="The run fails if, before a step's updates, the sampler and the trainer, or the trainer and the "
        "model's own forward pass, give a token probabilities whose ratio differs from 1 by more than this. None is "
        "what rounding explains at the model's size and number format, in fp32 and in bf16 (docs/models.md).",
    )
    check_every: Annotated[NonNegativeInt, NEUTRAL] = Field(
        10,
        description="That is looked at in step 1 on all sequences, and on a few in every step that this divides; 0 is "
        "step 1 alone.",
    )


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
