"""Evaluation while a run trains, and task files: questions, their grader, and how replies to them are sampled."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from cvxrl.recipe.base import AMENDABLE, RunName, Section
from cvxrl.recipe.task import TaskSpec

# maj@k divides by a binomial coefficient that is no floating-point number above that.
MOST_SAMPLES = 1024
Samples = Annotated[int, Field(ge=1, le=MOST_SAMPLES)]


class EvalSpec(Section):
    """Accuracy on held-out prompts, sampled."""

    every: Annotated[NonNegativeInt, AMENDABLE] = Field(
        20, description="Evaluate every N steps (and before and after training); 0 is never."
    )
    prompts: PositiveInt = Field(128, description="Held-out prompts; the same ones at every evaluation.")
    samples: PositiveInt = Field(4, description="Completions per prompt.")
    temperature: NonNegativeFloat = Field(1.0, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus mass.")
    seed: NonNegativeInt = Field(0, description="Seed of evaluation sampling, independent of the training seed.")


class EvalSampling(Section):
    """How replies are sampled; every number can be overridden on the command line."""

    questions: PositiveInt | None = Field(None, description="Questions asked; none means all there are.")
    samples: Samples = Field(1, description="Completions per question.")
    temperature: NonNegativeFloat = Field(1.0, description="Sampling temperature; 0 is greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus mass.")
    max_new_tokens: PositiveInt = Field(description="Longest completion, in tokens.")


class EvalTask(Section):
    """A task to evaluate on, in a file of its own."""

    name: RunName = Field(description="What the task is called in tables and in the output folder.")
    version: PositiveInt = Field(description="Raised whenever a change of this file can change a score.")
    task: TaskSpec = Field(description="Questions, template, extraction and grader.")
    sampling: EvalSampling = Field(description="How replies are sampled.")
