"""Which checkpoints are looked at, and under which recipe. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from cvxrl.errors import Problem, UserError
from cvxrl.evaluation.target import Target, find_target, renamed
from cvxrl.inspection.options import Options
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.schema import ModelSpec, Recipe
from cvxrl.runs.checkpoint import list_checkpoints, step_of, verify_checkpoint
from cvxrl.runs.directory import RunDir

_PATH = "PATH"


@dataclass(frozen=True)
class Snapshot:
    """A policy at one moment of its training.

    Attributes:
        step: last finished step, 0 before training; None where there is no run.
        model: recipe section that loads it.
        state: checkpoint that also holds optimizer and value head, or None.
    """

    step: int | None
    model: ModelSpec
    state: Path | None

    @property
    def name(self) -> str:
        """Name of its folder and its row."""
        return "checkpoint" if self.step is None else f"step-{self.step:06d}"


@dataclass(frozen=True)
class Source:
    """What is looked at.

    Attributes:
        recipe: the run's, or the one that was named.
        snapshots: in the order of training.
        folder: where frozen rollouts and results go unless told otherwise.
    """

    recipe: Recipe
    snapshots: list[Snapshot]
    folder: Path


def find_source(options: Options) -> Source:
    """Look at what the user named.

    Raises:
        UserError: there is no policy, no recipe, or no such step.
    """
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
    return Source(recipe, _of_run(target, target.run, recipe, options), target.run / "inspect")


def _of_policy(target: Target, recipe: Recipe, options: Options) -> Source:
    if options.steps is not None or options.all_steps:
        option = "--step" if options.steps is not None else "--all-steps"
        raise UserError(Problem("is for run directories", option, remedy="leave it out, or give a run as PATH"))
    model = target.model(recipe.model.dtype, recipe.model.revision if target.path == recipe.model.path else None)
    model = model.model_copy(update={"trust_remote_code": recipe.model.trust_remote_code})
    return Source(recipe, [Snapshot(None, model, None)], target.folder("inspect"))


def _of_run(target: Target, run: Path, recipe: Recipe, options: Options) -> list[Snapshot]:
    known = _snapshots(run, recipe, target)
    if options.all_steps:
        chosen = list(known.values())
    elif options.steps is not None:
        missing = [str(step) for step in options.steps if step not in known]
        if missing:
            remedy = f"choose from {', '.join(map(str, known))}; checkpoint.every says which steps a run keeps"
            what = f"the run has no checkpoint of step {', '.join(missing)}"
            raise UserError(Problem(what, "--step", str(run), remedy))
        chosen = [known[step] for step in sorted(set(options.steps))]
    elif target.step is not None:  # the path names a checkpoint
        chosen = [known[step_of(Path(target.path))]]
    else:
        chosen = list(known.values())[-1:]
    for snapshot in chosen:
        if snapshot.state is not None:
            verify_checkpoint(snapshot.state)
    return chosen


def _snapshots(run: Path, recipe: Recipe, target: Target) -> dict[int, Snapshot]:
    """Every policy of a run by step: the one it began with, its checkpoints, its final one."""
    directory = RunDir(run)
    found = {0: Snapshot(0, recipe.model, None)}
    for path in list_checkpoints(directory.checkpoints):
        # A checkpoint of adapters holds nothing but them, and is laid over the policy that training began with.
        model = recipe.model if recipe.model.lora is not None else _model(recipe, path)
        found[step_of(path)] = Snapshot(step_of(path), model, path)
    last = _last_step(directory)
    if (directory.policy / "config.json").is_file() and last is not None and last not in found:
        found[last] = Snapshot(last, _model(recipe, directory.policy), None)
    return dict(sorted(found.items()))


def _model(recipe: Recipe, path: Path) -> ModelSpec:
    return ModelSpec.model_validate({"path": str(path), "dtype": recipe.model.dtype})


def _last_step(directory: RunDir) -> int | None:
    try:
        step = directory.read_record().result.get("step")
    except (OSError, ValidationError, UserError):
        return None
    return None if step is None else int(step)
