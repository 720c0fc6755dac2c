"""A recipe's task as TRL's trainers want it: a data set of prompts and a reward function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasets import Dataset

from cvxrl.recipe.schema import Recipe
from cvxrl.rollout.prompts import render
from cvxrl.tasks import load_grader, load_task

Reward = Callable[..., list[float]]


def recipe_task(recipe: Recipe, tokenizer: Any, held_out: int | None = None) -> tuple[Dataset, Dataset, Reward]:
    """The prompts of all steps in the recipe's order, held-out prompts, and what rewards them.

    Args:
        recipe: names the task, and how many prompts there are.
        tokenizer: of the policy; the task's template may need it.
        held_out: prompts to evaluate on; None for the recipe's `eval.prompts`.

    Returns:
        Two data sets with a column `prompt`, and a reward function called `accuracy_reward`, whose mean on held-out
        prompts `compare` takes for an accuracy: so it is one where rewards are 0 and 1.

    Raises:
        UserError: the task cannot be loaded.
    """
    task, grader = load_task(recipe.task, recipe.seed), load_grader(recipe.task)
    count = recipe.eval.prompts if held_out is None else held_out
    train = [task.train(i) for i in range(recipe.train.steps * recipe.rollout.prompts)]
    held = [task.held_out(i) for i in range(min(count, task.held_out_size or count))]
    texts = [[render(example.prompt, recipe.task, tokenizer) for example in part] for part in (train, held)]
    known = dict(zip((text for part in texts for text in part), (*train, *held), strict=True))

    def accuracy_reward(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return [grade.reward for grade in grader.grade(completions, [known[prompt] for prompt in prompts])]

    prompts = [Dataset.from_list([{"prompt": text} for text in part]) for part in texts]
    return prompts[0], prompts[1], accuracy_reward
