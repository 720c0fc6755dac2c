"""The commands as functions that return what they found: for notebooks and scripts in Python.

Arguments are named as on the command line, with `_` for `-`. Mistakes raise `cvxrl.errors.UserError`, whose `problems`
say file, key and remedy. Each function loads its libraries when it is called, not when this module is imported.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TextIO, TypeVar, get_type_hints

from cvxrl.errors import Problem, UserError, suggest
from cvxrl.imports import quiet_libraries
from cvxrl.runs.entry import entry_of

if TYPE_CHECKING:
    from cvxrl.comparison.result import Comparison
    from cvxrl.evaluation.record import EvalRecord
    from cvxrl.inspection.record import InspectRecord
    from cvxrl.recipe.schema import Recipe

Overrides = Mapping[str, Any] | Sequence[str]
_Options = TypeVar("_Options")


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended.

    Attributes:
        path: its directory; docs/run_directory.md says what is in it.
        status: `finished`, `diverged` or `interrupted`.
        metrics: one mapping per step, keys as in metrics.jsonl; the first is the evaluation before training.
        result: last value of every metric.
    """

    path: Path
    status: Literal["finished", "diverged", "interrupted"]
    metrics: list[dict[str, float]]
    result: dict[str, float]

    @property
    def accuracy(self) -> float | None:
        """Held-out accuracy at the end; None if the run was never evaluated."""
        return self.result.get("eval/accuracy")

    @property
    def policy(self) -> Path:
        """Hugging Face directory of the final policy; it exists if the run finished."""
        return self.path / "policy"

    @property
    def updates(self) -> list[dict[str, float]]:
        """One mapping per optimizer step; empty unless the recipe's `logging.updates` asked for them."""
        from cvxrl.runs.directory import RunDir
        from cvxrl.runs.jsonl import read_records

        return read_records(RunDir(self.path).updates)

    def series(self, key: str) -> list[tuple[int, float]]:
        """(step, value) wherever a metric was measured, ready to be plotted."""
        return [(int(record["step"]), record[key]) for record in self.metrics if record.get(key) is not None]


def load_recipe(recipe: str | Path, overrides: Overrides = (), seed: int | None = None) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        recipe: a YAML file, or the bare name of a recipe that ships with the package.
        overrides: `{"optim.lr": 1e-4}`, or texts as `--set` takes them.
        seed: instead of the recipe's.

    Raises:
        UserError: with one problem per mistake.
    """
    from cvxrl.recipe.load import load_recipe as load

    if isinstance(overrides, Mapping):
        overrides = [f"{key}={json.dumps(value, default=str)}" for key, value in overrides.items()]
    return load(recipe, overrides, seed)


@quiet_libraries()
def train(
    recipe: Recipe | str | Path,
    overrides: Overrides = (),
    *,
    seed: int | None = None,
    out: str | Path = "outputs",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
) -> TrainedRun:
    """Train a policy as a recipe says, in `<out>/<recipe name>/seed-<n>/`.

    Args:
        recipe: as `load_recipe` gives or takes it.
        overrides: see `load_recipe`; for a recipe that is not loaded yet.
        seed: likewise.
        out: output folder.
        resume: go on with an existing run; one that has finished is read.
        overwrite: start an existing run again.
        progress: show it on stderr.

    Raises:
        UserError: the input cannot be used, or the run exists already.
    """
    from cvxrl.engine.session import run_training
    from cvxrl.engine.torch_world import world_of
    from cvxrl.report.display import make_sink
    from cvxrl.runs.directory import RunDir
    from cvxrl.runs.jsonl import read_records
    from cvxrl.runs.sink import NullSink

    if isinstance(recipe, str | Path):
        recipe = load_recipe(recipe, overrides, seed)
    elif overrides or seed is not None:
        raise UserError(Problem("the recipe is loaded already", "overrides", remedy="give them to load_recipe"))
    run_dir, entry = RunDir.of(Path(out), recipe), entry_of(resume, overwrite, "")
    go_on = "cvxrl.train(..., resume=True)"
    if progress:
        with make_sink(sys.stderr) as display:
            ended = run_training(recipe, run_dir, display, entry, go_on, world_of(recipe))
    else:
        ended = run_training(recipe, run_dir, NullSink(), entry, go_on, world_of(recipe))
    assert ended.status in ("finished", "diverged", "interrupted")
    return TrainedRun(run_dir.path, ended.status, read_records(run_dir.metrics), dict(ended.result))


@quiet_libraries()
def evaluate(
    ckpt: str | Path,
    *,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = False,
    **options: Any,
) -> EvalRecord:
    """Measure a policy on a task: `.results` has accuracy, pass@k and maj@k with their errors.

    Args:
        ckpt: run directory, Hugging Face directory or id, or `package:NAME/DIR`.
        device: where to run.
        resume: go on with an evaluation; `samples` may grow.
        overwrite: start an evaluation again.
        progress: show it on stderr.
        options: `task`, `samples`, `ks` and the others of `cvxrl eval` (`cvxrl.evaluation.options.Options`).

    Raises:
        UserError: the input cannot be used, or the evaluation exists already.
        KeyboardInterrupt: what was asked is kept; ``resume`` goes on.
    """
    from cvxrl.engine.process import settle_algorithms
    from cvxrl.engine.torch_world import world_on
    from cvxrl.evaluation.options import Options
    from cvxrl.evaluation.plan import make_plan
    from cvxrl.evaluation.progress import BarProgress
    from cvxrl.evaluation.runner import Exam
    from cvxrl.report.stop import StopRequest

    plan = make_plan(_checked(Options, {"ckpt": str(ckpt), "entry": entry_of(resume, overwrite, ""), **options}))
    exam = Exam.prepare(plan, device, world_on(device))
    if plan.target.recipe is not None:
        settle_algorithms(exam.evaluator.policy.device, plan.target.recipe.train.deterministic)
    try:
        with BarProgress(_stream(progress)) as bar, StopRequest("cvxrl.evaluate(..., resume=True)") as stop:
            record = exam.run(bar, lambda: stop.requested)
    finally:
        exam.close()
    if record is None:
        raise KeyboardInterrupt
    return record


def compare(
    *paths: str | Path,
    seeds: Sequence[int] | None = None,
    as_: Sequence[str] = (),
    alias: Sequence[str] = (),
    **options: Any,
) -> Comparison:
    """Compare methods over training seeds: `.summaries`, `.pairs` with the baseline, `.warnings`.

    Args:
        paths: run directories, logs of other programs, folders of them, or globs.
        seeds: only these.
        as_: logs with what they are runs of, each `METHOD:SEED=PATH`.
        alias: what the logs call a metric, each `OURS=THEIRS`.
        options: `metric`, `baseline`, `threshold` and the others of `cvxrl compare`
            (`cvxrl.comparison.options.Options`).

    Raises:
        UserError: a path holds no run, or the runs cannot be compared; also where the command would compare what is
            left and exit with 2.
    """
    from cvxrl.comparison.foreign.label import parse_alias, parse_label
    from cvxrl.comparison.options import Options
    from cvxrl.comparison.result import build
    from cvxrl.comparison.sources import discover, discover_stated, read_runs
    from cvxrl.study.plan import is_study

    found = discover([str(path) for path in paths])
    named, stated = discover_stated([parse_label(text) for text in as_], dict(map(parse_alias, alias)))
    found.add(named)
    for file in found.recipes:
        what, remedy = "is a recipe", "train it first, with cvxrl.train"
        if is_study(file):
            what, remedy = "is the plan of a study", "run it with the command: cvxrl compare PLAN"
        found.problems.append(Problem(what, file=str(file), remedy=remedy))
    runs, unreadable = read_runs(found.runs, stated)
    asked = _checked(Options, {"seeds": None if seeds is None else tuple(seeds), **options})
    comparison = build(runs, asked, [*found.problems, *unreadable])
    if comparison.problems:
        raise UserError(*comparison.problems)
    return comparison


@quiet_libraries()
def inspect(path: str | Path, *, progress: bool = False, **options: Any) -> InspectRecord:
    """See why a run is stable or not: several objectives on one checkpoint and the same frozen rollouts.

    Args:
        path: run directory, one of its checkpoints, or a Hugging Face directory or id.
        progress: show it on stderr.
        options: `objectives`, `steps`, `parts` and the others of `cvxrl inspect-grads`
            (`cvxrl.inspection.options.InspectOptions`).

    Raises:
        UserError: the input cannot be used.
        KeyboardInterrupt: the frozen rollouts are kept.
    """
    from rich.progress import TaskProgressColumn

    from cvxrl.inspection.options import InspectOptions
    from cvxrl.inspection.plan import make_plan
    from cvxrl.inspection.runner import run_inspection
    from cvxrl.report.progress import ProgressBar
    from cvxrl.report.stop import interrupted_at_once

    plan = make_plan(_checked(InspectOptions, {"path": str(path), **options}))
    bar = ProgressBar(_stream(progress), TaskProgressColumn(), lambda done, total: f"{done / total:>5.0%}")
    with interrupted_at_once(), bar:
        return run_inspection(plan, bar)


def _checked(kind: type[_Options], values: Mapping[str, Any]) -> _Options:
    """Options of a command from keywords.

    Raises:
        UserError: some of them do not exist, or are below what the command takes.
    """
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    problems = [
        Problem("unknown option", name, remedy=f"{suggest(name, known)}there are {', '.join(known)}")
        for name in values
        if name not in known
    ]
    for name, least in _least(kind).items():
        value = values.get(name)
        if isinstance(value, int | float) and value < least:
            problems.append(Problem(f"{value} is too small", name, remedy=f"write {least} or more"))
    if problems:
        raise UserError(*problems)
    return kind(**values)


def _least(kind: type) -> dict[str, float]:
    """The smallest value of each option that has one, as the command line knows it."""
    hints = get_type_hints(kind, include_extras=True)
    given = {name: [getattr(note, "min", None) for note in getattr(h, "__metadata__", ())] for name, h in hints.items()}
    return {name: least for name, notes in given.items() for least in notes if least is not None}


def _stream(progress: bool) -> TextIO:
    return sys.stderr if progress else io.StringIO()
