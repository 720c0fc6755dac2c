"""What `--task` names: a shipped task, a task file, a recipe, or a reasoning-gym data set. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from cvxrl.errors import Problem, UserError, suggest
from cvxrl.recipe.evaluation import MOST_SAMPLES, EvalSampling, EvalTask
from cvxrl.recipe.load import check, load_recipe
from cvxrl.recipe.merge import Layers, read_layers
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.shipped import named_recipe, shipped_recipes
from cvxrl.recipe.task import LOCAL_SUFFIXES, DatasetSource, TaskSpec, is_data_file

GYM = "reasoning-gym"
HELD_OUT = "held-out"
_OPTION = "--task"


@dataclass(frozen=True)
class AskedTask:
    """A task and how it is sampled unless the command line says otherwise.

    Attributes:
        name: used in tables and in the output folder.
        version: of the task file, or None.
        spec: questions, template, extraction, grader.
        sampling: default settings.
        seed: default seed of sampling.
        whole: whether every row of a source that holds nothing out may be asked.
        rows: completions decoded at a time, where a recipe says so.
    """

    name: str
    version: int | None
    spec: TaskSpec
    sampling: EvalSampling
    seed: int
    whole: bool
    rows: int | None = None


def shipped_tasks() -> dict[str, Path]:
    """Task files that come with the package, by name."""
    folder = Path(str(resources.files("cvxrl"))) / "assets" / "tasks"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def find_task(given: str | None, own: Recipe | None) -> AskedTask:
    """Find a task.

    Args:
        given: value of `--task`, or None for the task of the run.
        own: recipe of the run that the policy belongs to, if any.

    Raises:
        UserError: there is no such task, or its file has mistakes.
    """
    if given is None:
        if own is None:
            what = "the checkpoint belongs to no run, so it has no task of its own"
            raise UserError(Problem(what, _OPTION, remedy=f"name one: {_choices()}"))
        return _of_recipe(own, HELD_OUT, whole=False)
    shipped = shipped_tasks()
    if given in shipped:
        return _of_file(shipped[given])
    if given.startswith(f"{GYM}:"):
        return _of_gym(given.removeprefix(f"{GYM}:"))
    if given.endswith((".yaml", ".yml")) or Path(given).is_file():
        return _of_file(Path(given))
    recipe = named_recipe(given)
    if recipe is not None:
        return _of_file(recipe)
    remedy = f"{suggest(given, [*shipped, GYM, *shipped_recipes()])}{_choices()}"
    raise UserError(Problem(f"there is no task `{given}`", _OPTION, remedy=remedy))


def with_data(task: AskedTask, file: str | None, template: str | None) -> AskedTask:
    """The same task on a local copy of its questions, or behind another template.

    Raises:
        UserError: the task's questions do not come from a data set, or the file is not one.
    """
    values = task.spec.model_dump()
    problems = []
    if file is not None:
        if not isinstance(task.spec.source, DatasetSource):
            what = f"the questions of `{task.name}` are of kind {task.spec.source.kind}, not rows of a data set"
            problems.append(Problem(what, "--data", remedy="leave it out"))
        elif not is_data_file(file) or not Path(file).is_file():
            what = "there is no such file" if is_data_file(file) else "not a file of rows"
            problems.append(Problem(what, "--data", file, f"give a file ending in {', '.join(LOCAL_SUFFIXES)}"))
        else:
            hub = {"config_name": None, "revision": None, "eval_split": None, "eval_path": None, "split": "train"}
            values["source"] |= {"path": file, "held_out": 0, **hub}
    if problems:
        raise UserError(*problems)
    if template is not None:
        values["template"] = template
        if template in ("none", "question-answer"):
            values["system"] = None
    whole = task.whole or file is not None
    return replace(task, spec=TaskSpec.model_validate(values), whole=whole)


def _of_file(path: Path) -> AskedTask:
    """A task file, or a recipe, whose held-out questions are asked."""
    if "model" in read_layers(path, [], Recipe).values:
        recipe = load_recipe(path)
        return _of_recipe(recipe, recipe.name, whole=True)
    file = check(EvalTask, read_layers(path, [], EvalTask))
    return AskedTask(file.name, file.version, file.task, file.sampling, seed=0, whole=True)


def _of_gym(dataset: str) -> AskedTask:
    """A reasoning-gym data set with its own options and its own score."""
    layers = Layers(EvalTask)
    values = {
        "name": f"{GYM}-{dataset}",
        "version": 1,
        "task": {
            "source": {"kind": GYM, "dataset": dataset},
            "template": "chat",
            "instruction": "Give the final answer between <answer> and </answer>.",
            "extract": {"kind": "tag", "tag": "answer"},
            "reward": {"kind": GYM},
        },
        "sampling": {"questions": 128, "max_new_tokens": 512},
    }
    layers.add(values, _OPTION)
    file = check(EvalTask, layers)
    return AskedTask(file.name, file.version, file.task, file.sampling, seed=0, whole=True)


def _of_recipe(recipe: Recipe, name: str, *, whole: bool) -> AskedTask:
    sampling = EvalSampling(
        questions=recipe.eval.prompts,
        samples=min(recipe.eval.samples, MOST_SAMPLES),
        temperature=recipe.eval.temperature,
        top_p=recipe.eval.top_p,
        max_new_tokens=recipe.rollout.max_new_tokens,
    )
    return AskedTask(name, None, recipe.task, sampling, recipe.eval.seed, whole, recipe.rollout.batch)


def _choices() -> str:
    return f"{', '.join(shipped_tasks())}, {GYM}:DATASET, a task file, a recipe or its name"
