"""The run's recipe at the size that was asked for, and what it then disagrees about. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from cvxrl.errors import Problem
from cvxrl.inspection.options import InspectOptions
from cvxrl.recipe.conflicts import conflicts
from cvxrl.recipe.schema import Recipe

_SAMPLES, _PROMPTS = "--samples", "--prompts"
_REMEDY = "ask for more, or leave it out (--drift takes steps of the run's own objective too, unless it is 0)"


def resized(recipe: Recipe, options: InspectOptions) -> Recipe:
    """The recipe with the asked number of prompts and samples, and logits to look at.

    It takes as many optimizer steps per rollout, which its schedule counts, but each of the whole of it: one of another
    size need not be divisible.
    """
    rollout = recipe.rollout.model_copy(
        update={
            "prompts": options.prompts or recipe.rollout.prompts,
            "samples": options.samples or recipe.rollout.samples,
            "rounds": 1,
        }
    )
    steps = recipe.train.inner_epochs * recipe.train.minibatches
    train = recipe.train.model_copy(
        update={"inner_epochs": steps, "minibatches": 1, "loss": "full-logits", "chunk_tokens": None}
    )
    return recipe.model_copy(update={"rollout": rollout, "train": train})


def size_problems(recipe: Recipe, options: InspectOptions) -> list[Problem]:
    """What the run's own recipe cannot do with so few prompts or samples, under the option that asks for it.

    A copy of a recipe is not checked when it is made. What the run's own size disagrees about too is not told here.
    """
    known = set(conflicts(resized(recipe, replace(options, prompts=None, samples=None))))
    found = dict.fromkeys(conflicts(resized(recipe, replace(options, prompts=None))), _SAMPLES)
    found = {**dict.fromkeys(conflicts(resized(recipe, options)), _PROMPTS), **found}
    return [
        Problem(line.partition("; ")[0], option, remedy=_REMEDY) for line, option in found.items() if line not in known
    ]
