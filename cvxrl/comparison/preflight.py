"""Before the first of many runs: whether all of them can be compared, and whether all that they need is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cvxrl.comparison.factors import find_factors, refuse_undeclared
from cvxrl.comparison.group import Group, label_of, value_at
from cvxrl.comparison.options import Options
from cvxrl.comparison.plan import Job, Planned
from cvxrl.comparison.run import LoggedRun, Run
from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.imports import import_function, require_installed
from cvxrl.policy.locate import ADAPTER_CONFIG, locate
from cvxrl.recipe.advantage import CallableAdvantage, DenseAdvantage, DenseDpoAdvantage
from cvxrl.recipe.model import ModelSpec
from cvxrl.recipe.objective import CallableObjective
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.task import TaskSpec
from cvxrl.runs.entry import refuse_if_held, require_writable
from cvxrl.runs.secrets import refuse_secrets
from cvxrl.runs.sink_kinds import sink_openers
from cvxrl.tasks import load_grader, load_task

_OTHER_DATA = "learns from {0}, {1} from {2}: no method of this comparison"


def incomparable(planned: Sequence[Planned], runs: Sequence[Run], options: Options) -> list[Problem]:
    """Why the runs could not be compared once they are trained; the same words as then.

    Args:
        planned: recipes that are to be trained.
        runs: what is there already.
        options: of the comparison.
    """
    first = planned[0]
    others = [one for one in planned if one.recipe.data != first.recipe.data]
    problems = []
    for file in dict.fromkeys(one.file for one in others):
        data = next(one.recipe.data for one in others if one.file == file)
        what = _OTHER_DATA.format(data, first.file.name, first.recipe.data)
        problems.append(Problem(what, "objective.kind", str(file), "leave it out"))
    alike = [_as_run(one) for one in planned if one not in others] + [r for r in runs if r.recipe is not None]
    groups = [
        Group(label_of(run, options.vary), run.method, value_at(run, options.vary), (run,), ())
        for run in {label_of(run, options.vary): run for run in reversed(alike)}.values()
    ][::-1]
    return problems + ([] if options.allow_diff else refuse_undeclared(find_factors(groups, options)))


def missing_parts(planned: Sequence[Planned], jobs: Sequence[Job]) -> list[Problem]:
    """What is not there of all that the runs to train name: policies, verifiers, data, functions, packages, folders.

    Each is looked at once, however many runs share it; no weights are read.

    Args:
        planned: recipes; those without a job are passed over.
        jobs: the runs to train.
    """
    mistakes, wanted = Mistakes(), {job.recipe for job in jobs}
    checked: set[str] = set()
    for one in planned:
        if one.file not in wanted:
            continue
        for name, check in _checks(one.recipe):
            if name in checked:
                continue
            checked.add(name)
            try:
                check()
            except UserError as error:
                mistakes.problems += (replace(p, file=p.file or str(one.file)) for p in error.problems)
    for job in jobs:
        mistakes.attempt(_enterable, job.path)
    return list(dict.fromkeys(mistakes.problems))


def _checks(recipe: Recipe) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What to look at, each with a name that is the same where it would be the same look."""
    yield f"model {recipe.model.model_dump_json()}", partial(_policy, recipe.model)
    advantage, objective = recipe.advantage, recipe.objective
    if isinstance(advantage, DenseAdvantage):
        for key in ("verifier", *(["reference"] if isinstance(advantage, DenseDpoAdvantage) else [])):
            path = getattr(advantage, key)
            yield f"{key} {path}", partial(_verifier, path, f"advantage.{key}")
    for key, spec in (("objective", objective), ("advantage", advantage)):
        if isinstance(spec, CallableObjective | CallableAdvantage):
            yield f"{key} {spec.function}", partial(import_function, spec.function, f"{key}.function")
    evaluated = bool(recipe.eval.every)
    yield f"task {evaluated} {recipe.task.model_dump_json()}", partial(_task, recipe.task, evaluated)
    yield f"sinks {recipe.logging.sinks}", partial(sink_openers, recipe, Path())
    yield f"secrets {recipe}", partial(refuse_secrets, recipe)


def _policy(spec: ModelSpec) -> None:
    """A policy's files are there; one on the Hub shows its configuration."""
    if spec.lora is not None or spec.adapter is not None:
        require_installed("peft", "peft", "lora", "model.lora" if spec.lora is not None else "model.adapter")
    if spec.adapter is not None and not (Path(spec.adapter).expanduser() / ADAPTER_CONFIG).is_file():
        what = f"there is no adapter in `{spec.adapter}`"
        raise UserError(Problem(what, "model.adapter", remedy=f"give a folder with {ADAPTER_CONFIG}"))
    if spec.path is None:
        return
    location = locate(spec)
    if location.gguf_file is not None:
        require_installed("gguf", "gguf", "gguf", "model.path")
    elif location.is_local:
        if not (Path(location.path) / "config.json").is_file():
            what = f"`{spec.path}` is no Hugging Face directory: it has no config.json"
            raise UserError(Problem(what, "model.path", remedy="give a directory that save_pretrained wrote"))
    else:
        _on_the_hub(location.path, spec.revision)


def _on_the_hub(repository: str, revision: str | None) -> None:
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(repository, "config.json", revision=revision)
    except (OSError, ValueError) as error:  # what the Hub's client raises is one of these
        what = f"`{repository}` cannot be had from the Hub: {str(error).splitlines()[0]}"
        raise UserError(Problem(what, "model.path", remedy="check the name and the network, or download it")) from None


def _verifier(path: str, key: str) -> None:
    try:
        _policy(ModelSpec(path=path))
    except UserError as error:
        remedy = "train a verifier first (recipes pref_qrm and pref_dpo) and name its `policy` folder"
        raise UserError(*(replace(p, key=key, remedy=remedy) for p in error.problems)) from None


def _task(spec: TaskSpec, evaluated: bool) -> None:
    mistakes = Mistakes()
    task = mistakes.attempt(load_task, spec, 0)
    grader = mistakes.attempt(load_grader, spec)
    if grader is not None:
        grader.close()
    if task is not None and evaluated and task.held_out_size == 0:
        remedy = "set eval.every to 0, or hold some out"
        mistakes.problems.append(Problem("the task has no held-out examples", "eval.every", remedy=remedy))
    if mistakes.problems:
        raise UserError(*mistakes.problems)


def _enterable(path: Path) -> None:
    refuse_if_held(path)
    require_writable(path)


def _as_run(planned: Planned) -> LoggedRun:
    recipe = planned.recipe
    contents = recipe.model_dump(mode="json")
    return LoggedRun(planned.file, recipe.name, recipe.seed, recipe.train.steps, [], recipe=contents)
