"""From options to a checked plan; every mistake that can be seen without loading anything. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cvxrl.errors import Problem, UserError
from cvxrl.inspection.objectives import Contestant, contestants, yardstick
from cvxrl.inspection.options import Options
from cvxrl.inspection.source import Snapshot, Source, find_source
from cvxrl.recipe.advantage import GaeAdvantage, RewardAdvantage
from cvxrl.recipe.lco import LcoKldSpec
from cvxrl.recipe.schema import Recipe

_MOST_MINIBATCHES = 8
# Below this a jackknife over minibatches says nothing about its own width.
FEWEST_MINIBATCHES = 4


@dataclass(frozen=True)
class Plan:
    """A checked inspection.

    Attributes:
        options: as asked.
        recipe: the run's, with the asked size of the rollout.
        snapshots: what is looked at, in the order of training.
        contestants: objectives, the run's own first.
        yardstick: target that all of them are held against.
        minibatches: equal parts of the rollout.
        folder: where rollouts and results go.
    """

    options: Options
    recipe: Recipe
    snapshots: list[Snapshot]
    contestants: list[Contestant]
    yardstick: LcoKldSpec
    minibatches: int
    folder: Path

    @property
    def plain_advantage(self) -> RewardAdvantage:
        """An estimator that needs nothing but rewards."""
        return RewardAdvantage()


def make_plan(options: Options) -> Plan:
    """Check the options against what is on the disk.

    Raises:
        UserError: with every mistake found.
    """
    problems = list(_impossible(options))
    source: Source | None = None
    try:
        source = find_source(options)
    except UserError as error:
        problems += error.problems
    if source is None:
        raise UserError(*problems)
    recipe = _resized(source.recipe, options)
    entered: list[Contestant] = []
    try:
        entered = contestants(options.objectives, recipe, _has_values(source))
    except UserError as error:
        problems += error.problems
    count = options.minibatches or _largest_divisor(recipe.rollout.prompts)
    problems += _too_few(options, recipe, count)
    if problems:
        raise UserError(*problems)
    folder = options.out or source.folder
    return Plan(options, recipe, source.snapshots, entered, yardstick(entered), count, folder)


def _impossible(options: Options) -> list[Problem]:
    problems = []
    if options.all_steps and options.steps is not None:
        problems.append(Problem("cannot be combined with --step", "--all-steps", remedy="choose one of them"))
    if options.objectives is not None and not options.objectives:
        problems.append(Problem("names no objective", "--objectives", remedy="for example lco-kld,grpo"))
    return problems


def _resized(recipe: Recipe, options: Options) -> Recipe:
    """The recipe with the asked number of prompts and samples, one pass over a rollout, and logits to look at."""
    rollout = recipe.rollout.model_copy(
        update={
            "prompts": options.prompts or recipe.rollout.prompts,
            "samples": options.samples or recipe.rollout.samples,
            "rounds": 1,
        }
    )
    train = recipe.train.model_copy(
        update={"inner_epochs": 1, "minibatches": 1, "loss": "full-logits", "chunk_tokens": None}
    )
    return recipe.model_copy(update={"rollout": rollout, "train": train})


def _has_values(source: Source) -> bool:
    """Whether every snapshot comes with the value head of the run's own advantages."""
    own = isinstance(source.recipe.advantage, GaeAdvantage)
    # The value head starts at zero, so before the first step it needs no checkpoint.
    return own and all(s.state is not None or s.step == 0 for s in source.snapshots)


def _largest_divisor(prompts: int) -> int:
    return max(n for n in range(1, _MOST_MINIBATCHES + 1) if prompts % n == 0)


def _too_few(options: Options, recipe: Recipe, count: int) -> list[Problem]:
    prompts = recipe.rollout.prompts
    if options.parts is not None and "gradients" not in options.parts:
        return []
    if prompts % count:
        remedy = f"choose a divisor of {prompts}, or another --prompts"
        return [Problem(f"{count} does not divide the {prompts} prompts", "--minibatches", remedy=remedy)]
    if count < FEWEST_MINIBATCHES:
        what = (
            f"the noise scale compares at least {FEWEST_MINIBATCHES} equal minibatches of whole prompts, but "
            f"{prompts} prompts make {count}"
        )
        remedy = f"set --prompts to a multiple of {FEWEST_MINIBATCHES}, or leave gradients out of --parts"
        return [Problem(what, "--prompts" if options.minibatches is None else "--minibatches", remedy=remedy)]
    return []
