"""From options to a checked plan: which checkpoints and objectives are measured, under which recipe.

Every mistake that can be seen without loading anything is found here, and all are told at once. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.evaluation.target import Target, find_target, renamed
from cvxrl.inspection.foreign.checkpoint import find_foreign
from cvxrl.inspection.foreign.choice import describe_choice
from cvxrl.inspection.foreign.completions import OPTION as COMPLETIONS
from cvxrl.inspection.foreign.plan import plan_foreign, stored_for_policy, with_shape
from cvxrl.inspection.objectives import NamedObjective, select_objectives, unnamed_own, yardstick
from cvxrl.inspection.options import InspectOptions, Part, check_parts, check_steps
from cvxrl.inspection.size import Size
from cvxrl.inspection.sources import Checkpoint, Checkpoints
from cvxrl.inspection.walk import Walk, plan_walk
from cvxrl.recipe.advantage import GaeAdvantage
from cvxrl.recipe.lco import LcoKldSpec
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.model import ModelSpec
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.checkpoint import list_checkpoints, step_of, verify_checkpoint
from cvxrl.runs.directory import RunDir

_PATH = "PATH"
_MOST_MINIBATCHES = 8
# Below this a jackknife over minibatches says nothing about its own width.
FEWEST_MINIBATCHES = 4


@dataclass(frozen=True)
class InspectionPlan:
    """A checked inspection.

    Attributes:
        options: as asked.
        recipe: the run's, with the asked size of the rollout.
        checkpoints: what is looked at, in the order of training.
        objectives: the run's own first.
        yardstick: defines the target that all of them are held against.
        parts: what is measured; None leaves it to the model's size.
        also: what is measured besides, whatever the size.
        walk: updates along which a rollout is reused, or None.
        unnamed: the run's own objective where it is not among the objectives, but `--drift` takes its steps.
        minibatches: equal parts of the rollout.
        folder: where rollouts and results go.
        size: of each checkpoint's rollouts.
    """

    options: InspectOptions
    recipe: Recipe
    checkpoints: list[Checkpoint]
    objectives: list[NamedObjective]
    yardstick: LcoKldSpec
    parts: tuple[Part, ...] | None
    also: tuple[Part, ...]
    walk: Walk | None
    minibatches: int
    folder: Path
    size: Size
    unnamed: NamedObjective | None = None

    @property
    def stepping(self) -> list[NamedObjective]:
        """All whose steps are taken: the measured ones, then the run's own where it is not among them."""
        return [*self.objectives, *([] if self.unnamed is None else [self.unnamed])]

    @property
    def own_rate(self) -> bool:
        """Whether a foreign checkpoint says the learning rate of its next step, and neither a recipe nor `--set`."""
        return self.options.recipe is None and not any(text.startswith("optim") for text in self.options.sets)

    @property
    def text(self) -> str:
        """What is going to be done, in words."""
        labels = ", ".join(objective.label for objective in self.objectives)
        return f"plan: {len(self.checkpoints)} checkpoint(s) x {labels}; {self.size.text}"


def make_plan(options: InspectOptions) -> InspectionPlan:
    """Check the options against what is on the disk.

    Raises:
        UserError: with every mistake found.
    """
    mistakes = Mistakes()
    mistakes.problems += _impossible(options)
    parts, steps = mistakes.attempt(check_parts, options.parts), mistakes.attempt(check_steps, options.steps)
    found = mistakes.attempt(_find, options, steps)
    if found is None:
        raise UserError(*mistakes.problems)
    recipe = _resized(found.recipe, options)
    has_values = _has_values(found)
    objectives = mistakes.attempt(select_objectives, options.objectives, recipe, has_values) or []
    count = options.minibatches or _largest_divisor(recipe.rollout.prompts)
    mistakes.problems += _too_few(options, parts, recipe, count)
    also = _also(options)
    drifts = options.drift > 0 and "logits" in (*also, *(parts or ("logits",)))
    unnamed = unnamed_own(objectives, recipe, has_values) if drifts and objectives else None
    asked = "reuse" in (*also, *(parts or ()))
    walk = mistakes.attempt(plan_walk, options, asked, found.recipe, recipe, objectives)
    size = mistakes.attempt(Size.of, recipe)
    if size is not None and not options.yes:
        mistakes.problems += size.problems()
    if mistakes.problems or size is None:
        raise UserError(*mistakes.problems)
    target, folder = yardstick(objectives, recipe), options.out or found.folder
    return InspectionPlan(
        options, recipe, found.chosen, objectives, target, parts, also, walk, count, folder, size, unnamed
    )


def _also(options: InspectOptions) -> tuple[Part, ...]:
    """Parts that are measured although no list names them: whoever says how many updates wants to see them."""
    given = (options.updates, options.inner_epochs, options.inner_minibatches)
    return (*options.also, "reuse") if any(value is not None for value in given) else options.also


def _impossible(options: InspectOptions) -> list[Problem]:
    problems = []
    if options.all_steps and options.steps is not None:
        problems.append(Problem("cannot be combined with --step", "--all-steps", remedy="choose one of them"))
    if options.objectives is not None and not options.objectives:
        problems.append(Problem("names no objective", "--objectives", remedy="for example lco-kld,grpo"))
    return problems


def _resized(recipe: Recipe, options: InspectOptions) -> Recipe:
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


def _has_values(found: Checkpoints) -> bool:
    """Whether every checkpoint comes with the value head of the run's own advantages."""
    own = isinstance(found.recipe.advantage, GaeAdvantage)
    # The value head starts at zero, so before the first step it needs no checkpoint.
    return own and all(c.state is not None or c.step == 0 for c in found.chosen)


def _largest_divisor(prompts: int) -> int:
    return max(n for n in range(1, _MOST_MINIBATCHES + 1) if prompts % n == 0)


def _too_few(options: InspectOptions, parts: tuple[Part, ...] | None, recipe: Recipe, count: int) -> list[Problem]:
    prompts = recipe.rollout.prompts
    if parts is not None and "gradients" not in parts:
        return []
    if prompts % count:
        remedy = f"choose a divisor of {prompts}, or another --prompts"
        return [Problem(f"{count} does not divide the {prompts} prompts", "--minibatches", remedy=remedy)]
    if count < FEWEST_MINIBATCHES and options.minibatches is not None:
        what = f"the noise scale compares at least {FEWEST_MINIBATCHES} equal minibatches of whole prompts"
        remedy = f"give a divisor of the {prompts} prompts that is at least {FEWEST_MINIBATCHES}, or leave it out"
        return [Problem(what, "--minibatches", remedy=remedy)]
    if count < FEWEST_MINIBATCHES:
        what = (
            f"the noise scale compares at least {FEWEST_MINIBATCHES} equal minibatches of whole prompts, but "
            f"{prompts} prompts make {count}"
        )
        remedy = f"set --prompts to a multiple of {FEWEST_MINIBATCHES}, or leave gradients out of --parts"
        return [Problem(what, "--prompts", remedy=remedy)]
    return []


def _find(options: InspectOptions, steps: list[int] | None) -> Checkpoints:
    """The checkpoints that the user named.

    Raises:
        UserError: there is no policy, no recipe, or no such step.
    """
    foreign = find_foreign(options.path)
    if foreign:
        return plan_foreign(foreign, options, steps)
    try:
        target = find_target(options.path)
    except UserError as error:
        raise renamed(error, {"--ckpt": _PATH}) from None
    if options.recipe is not None:
        recipe = load_recipe(options.recipe, options.sets)
    elif target.run is not None:
        recipe = load_recipe(RunDir(target.run).recipe, options.sets)
    else:
        raise UserError(
            Problem(
                f"`{options.path}` belongs to no run, so it has no recipe: no task, no rollouts, no objective",
                "--recipe",
                remedy="name one, e.g. --recipe math_lco_kld",
            )
        )
    if target.run is None:
        return _of_policy(target, recipe, options)
    if options.completions is not None:
        what = "is for policies of other trainers: a run's next rollouts are sampled from its task"
        raise UserError(Problem(what, COMPLETIONS, remedy="leave it out"))
    return Checkpoints(recipe, _of_run(target, target.run, recipe, steps, options.all_steps), target.run / "inspect")


def _of_policy(target: Target, recipe: Recipe, options: InspectOptions) -> Checkpoints:
    if options.steps is not None or options.all_steps:
        option = "--step" if options.steps is not None else "--all-steps"
        raise UserError(Problem("is for run directories", option, remedy="leave it out, or give a run as PATH"))
    model = target.model(recipe.model.dtype, recipe.model.revision if target.path == recipe.model.path else None)
    model = model.model_copy(update={"trust_remote_code": recipe.model.trust_remote_code})
    source, stored = Checkpoint(None, model, None), stored_for_policy(target, options)
    if stored is not None:
        recipe = with_shape(recipe, stored)
        source = replace(source, stored=stored, notes=tuple(describe_choice(stored, None)))
    return Checkpoints(recipe, [source], target.folder("inspect"))


def _of_run(target: Target, run: Path, recipe: Recipe, steps: list[int] | None, all_steps: bool) -> list[Checkpoint]:
    known = _checkpoints(run, recipe, target)
    if all_steps:
        chosen = list(known.values())
    elif steps is not None:
        missing = [str(step) for step in steps if step not in known]
        if missing:
            remedy = f"choose from {', '.join(map(str, known))}; checkpoint.every says which steps a run keeps"
            what = f"the run has no checkpoint of step {', '.join(missing)}"
            raise UserError(Problem(what, "--step", str(run), remedy))
        chosen = [known[step] for step in sorted(set(steps))]
    elif target.step is not None:  # the path names a checkpoint
        chosen = [known[step_of(Path(target.path))]]
    else:
        chosen = list(known.values())[-1:]
    for checkpoint in chosen:
        if checkpoint.state is not None:
            verify_checkpoint(checkpoint.state)
    return chosen


def _checkpoints(run: Path, recipe: Recipe, target: Target) -> dict[int, Checkpoint]:
    """Every policy of a run by step: the one it began with, its checkpoints, its final one."""
    directory = RunDir(run)
    found = {0: Checkpoint(0, recipe.model, None)}
    for path in list_checkpoints(directory.checkpoints):
        # A checkpoint of adapters holds nothing but them, and is laid over the policy that training began with.
        model = recipe.model if recipe.model.lora is not None else _model(recipe, path)
        found[step_of(path)] = Checkpoint(step_of(path), model, path)
    last = _last_step(directory)
    if (directory.policy / "config.json").is_file() and last is not None and last not in found:
        found[last] = Checkpoint(last, _model(recipe, directory.policy), None)
    return dict(sorted(found.items()))


def _model(recipe: Recipe, path: Path) -> ModelSpec:
    return ModelSpec.model_validate(
        {"path": str(path), "dtype": recipe.model.dtype, "trust_remote_code": recipe.model.trust_remote_code}
    )


def _last_step(directory: RunDir) -> int | None:
    try:
        step = directory.read_record().result.get("step")
    except (OSError, ValidationError, UserError):
        return None
    return None if step is None else int(step)
