"""The recipe: every number that can change a result, in one frozen tree."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from cvxrl.recipe.advantage import AdvantageSpec, GroupAdvantage
from cvxrl.recipe.base import NEUTRAL, Section
from cvxrl.recipe.conflicts import conflicts
from cvxrl.recipe.guards import GuardsSpec
from cvxrl.recipe.logging import CheckpointSpec, LoggingSpec
from cvxrl.recipe.lora import LoraSpec
from cvxrl.recipe.objective import ObjectiveSpec
from cvxrl.recipe.optim import AdamwSpec, OptimSpec
from cvxrl.recipe.policy_gradient import GrpoSpec
from cvxrl.recipe.regularizer import RegularizerSpec
from cvxrl.recipe.task import TaskSpec

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


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

    path: str | None = Field(
        None,
        description="Hugging Face directory or Hub id, or `package:NAME/DIR` for files that an installed package "
        "ships. A path to a `.gguf` file is read as GGUF.",
    )
    revision: str | None = Field(None, description="Hub revision; none means the default branch.")
    gguf_file: str | None = Field(None, description="Name of a GGUF file inside `path`.")
    scratch: ScratchSpec | None = Field(None, description="Initialise a new policy instead of loading one.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Data type of the parameters.")
    trust_remote_code: bool = Field(False, description="Allow the model repository to run its own Python code.")
    allow_pickle: bool = Field(
        False,
        description="Allow weights in PyTorch's pickle format where there are no safetensors: reading them can run "
        "code that their author put there.",
    )
    adapter: str | None = Field(
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
    engine: Literal["auto", "static", "transformers"] = Field(
        "auto",
        description="What computes the logits while sampling, in training and evaluation: `transformers` is the "
        "model's own forward pass; `auto` writes it out with fewer operations for Llama, Qwen2 and Qwen3 models and is "
        "`transformers` for all others; `static` writes it out with operations of fixed shape, which CUDA replays as a "
        "graph (no gain on a CPU; other models are refused). Equal up to rounding.",
    )
    rounds: PositiveInt = Field(
        1,
        description="Dynamic sampling (DAPO): sample up to this many times `prompts` new prompts, until that many "
        "groups hold both right and wrong replies; groups without a contrast fill what is missing. 1 is never.",
    )


class TrainSpec(Section):
    """The outer loop: steps, passes over a rollout, and how a step is split to fit memory."""

    steps: PositiveInt = Field(100, description="Rollouts (outer steps).")
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
    ratio_tolerance: PositiveFloat | None = Field(
        None,
        description="Stop at the first step if the on-policy ratio differs from 1 by more than this; none means 1e-5 "
        "in fp32 and no limit in bf16. The measured number is always logged.",
    )


class EvalSpec(Section):
    """Accuracy on held-out prompts, sampled."""

    every: NonNegativeInt = Field(20, description="Evaluate every N steps (and before and after training); 0 is never.")
    prompts: PositiveInt = Field(128, description="Held-out prompts; the same ones at every evaluation.")
    samples: PositiveInt = Field(4, description="Completions per prompt.")
    temperature: NonNegativeFloat = Field(1.0, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus mass.")
    seed: NonNegativeInt = Field(0, description="Seed of evaluation sampling, independent of the training seed.")


class Recipe(Section):
    """One experiment. `advantage`, `objective` and `reduction` are independent of each other."""

    name: RunName = Field(description="Name of the run directory under the output folder.")
    seed: NonNegativeInt = Field(0, description="Seed of data order, sampling, minibatches and initial weights.")
    reading: Literal["paper", "authors-code"] = Field(
        "paper",
        description="`authors-code` sets the fields in which the authors' public code departs from the paper (rewards "
        "+1 / -1 as advantages, negatives at 100 beta, top-5 logits or a moving target, no clipping, optimizer state "
        "dropped at every step) above what the recipe extends and below what it sets itself.",
    )
    model: ModelSpec = Field(description="The policy.")
    task: TaskSpec = Field(description="Prompts and their verifier.")
    rollout: RolloutSpec = Field(RolloutSpec(), description="Sampling.")
    advantage: AdvantageSpec = Field(GroupAdvantage(), description="How rewards become advantages.")
    objective: ObjectiveSpec = Field(GrpoSpec(), description="The per-token loss.")
    reduction: Literal["token-mean", "sequence-mean", "constant"] = Field(
        "token-mean",
        description="How token losses become one number: over all tokens of the optimizer step; per sequence, then "
        "over sequences; or divided by sequences x max_new_tokens (Dr. GRPO).",
    )
    regularizer: RegularizerSpec = Field(RegularizerSpec(), description="Terms added to the token loss.")
    optim: OptimSpec = Field(AdamwSpec(), description="Optimizer.")
    train: TrainSpec = Field(TrainSpec(), description="Training loop.")
    eval: EvalSpec = Field(EvalSpec(), description="Held-out evaluation.")
    checkpoint: Annotated[CheckpointSpec, NEUTRAL] = Field(CheckpointSpec(), description="Checkpoints.")
    guards: GuardsSpec = Field(GuardsSpec(), description="Rules that warn or stop.")
    logging: LoggingSpec = Field(LoggingSpec(), description="Logging.")

    @property
    def data(self) -> Literal["rollouts", "demonstrations", "preferences"]:
        """What the objective learns from."""
        needs = self.objective.needs
        return (
            "demonstrations" if "demonstrations" in needs else "preferences" if "preferences" in needs else "rollouts"
        )

    @property
    def group_size(self) -> int:
        """Sequences per prompt: samples of a rollout, one demonstration, or a chosen and a rejected response."""
        return {"rollouts": self.rollout.samples, "demonstrations": 1, "preferences": 2}[self.data]

    @property
    def sequences_per_step(self) -> int:
        """Sequences that one step trains on."""
        return self.rollout.prompts * self.group_size

    @property
    def coupled_sequences(self) -> int:
        """Sequences that must share a forward pass: those of a prompt where the objective compares them, else one."""
        return self.group_size if self.objective.coupling == "group" else 1

    @property
    def equation(self) -> str:
        """Loss per token, regularisation included."""
        return self.objective.equation + self.regularizer.equation

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems = list(conflicts(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self
