"""The recipe: every number that can change a result, in one frozen tree."""

from __future__ import annotations

import math
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, model_validator

from cvxrl.recipe.advantage import AdvantageSpec, DenseAdvantage, GroupAdvantage
from cvxrl.recipe.base import ADDED, AMENDABLE, NEUTRAL, RunName, Section
from cvxrl.recipe.conflicts import conflicts
from cvxrl.recipe.evaluation import EvalSpec
from cvxrl.recipe.lco import LcoSpec
from cvxrl.recipe.model import ModelSpec
from cvxrl.recipe.monitoring import CheckpointSpec, GuardsSpec, LoggingSpec
from cvxrl.recipe.objective import GrpoSpec, ObjectiveSpec, RegularizerSpec
from cvxrl.recipe.placement import PlacementSpec
from cvxrl.recipe.reading import notes
from cvxrl.recipe.step import FixedStep, StepSpec
from cvxrl.recipe.task import TaskSpec
from cvxrl.recipe.training import AdamwSpec, OptimSpec, RolloutSpec, TrainSpec


class Recipe(Section):
    """One experiment. `advantage`, `objective` and `reduction` are independent of each other."""

    name: RunName = Field(description="Name of the run directory under the output folder.")
    seed: NonNegativeInt = Field(0, description="Seed of data order, sampling, minibatches and initial weights.")
    reading: Literal["paper", "authors-code"] = Field(
        "paper",
        description="`authors-code` sets the fields in which the authors' public code departs from the paper (rewards "
        "+1 / -1 as advantages, negatives at 100 beta, top-5 logits or a moving target; with dense advantages their "
        "verifier's candidates and one beta; Adam without clipping, decay or schedule, its state dropped at every "
        "rollout) above what the recipe extends and below what it sets itself; `--dry-run` says where a recipe departs "
        "from it (docs/method.md, section 6).",
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
    step: Annotated[StepSpec, ADDED] = Field(
        FixedStep(), description="How much of each optimizer step is taken (docs/steps.md)."
    )
    train: TrainSpec = Field(TrainSpec(), description="Training loop.")
    eval: EvalSpec = Field(EvalSpec(), description="Held-out evaluation.")
    checkpoint: Annotated[CheckpointSpec, NEUTRAL] = Field(CheckpointSpec(), description="Checkpoints.")
    guards: Annotated[GuardsSpec, AMENDABLE] = Field(GuardsSpec(), description="Rules that warn or stop.")
    logging: LoggingSpec = Field(LoggingSpec(), description="Logging.")
    placement: Annotated[PlacementSpec, NEUTRAL, ADDED] = Field(
        PlacementSpec(), description="Processes that train together (docs/scale.md)."
    )

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
        loss = self.objective.equation
        if isinstance(self.objective, LcoSpec) and isinstance(self.advantage, DenseAdvantage):
            loss = self.objective.dense_equation
        return loss + self.regularizer.equation

    @property
    def notes(self) -> list[str]:
        """What is worth knowing before it runs, a sentence or two each."""
        return notes(self)

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        problems = list(conflicts(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self


def optimizer_steps(train: TrainSpec) -> int:
    """Optimizer steps of the whole run."""
    return train.steps * train.inner_epochs * train.minibatches


def learning_rate(spec: OptimSpec, index: int, total: int) -> float:
    """Learning rate of optimizer step ``index`` (from 0) of ``total``."""
    if index < spec.warmup_steps:
        return spec.lr * (index + 1) / spec.warmup_steps
    progress = (index - spec.warmup_steps) / max(1, total - 1 - spec.warmup_steps)
    match spec.schedule:
        case "constant":
            share = 1.0
        case "linear":
            share = 1.0 - progress
        case "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * progress))
    return spec.lr * (spec.final_lr_fraction + (1.0 - spec.final_lr_fraction) * share)
