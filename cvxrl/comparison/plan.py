"""Which runs recipes and seeds ask for, and which of them are still to be trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from cvxrl.comparison.group import FREE_KEYS
from cvxrl.comparison.sources import runs_below
from cvxrl.errors import Problem, UserError
from cvxrl.recipe.digest import differences
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.directory import RunDir


@dataclass(frozen=True)
class Job:
    """One run to train.

    Attributes:
        recipe: file to give to `cvxrl train`.
        overrides: its `--set` options.
        seed: its seed.
        out: its output folder.
        path: its run directory.
        steps: steps of the whole run.
        resume: whether something of it exists already.
    """

    recipe: Path
    overrides: tuple[str, ...]
    seed: int
    out: Path
    path: Path
    steps: int
    resume: bool

    @property
    def name(self) -> str:
        """What the progress display calls it."""
        varied = f" {self.out.name}" if "=" in self.out.name else ""
        return f"{self.path.parent.name}{varied} {self.path.name}"


@dataclass
class Plan:
    """What recipes stand for.

    Attributes:
        runs: run directories, trained or to be trained, in order.
        jobs: those of them that have to be trained.
    """

    runs: list[Path] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)


def plan_runs(
    recipes: Sequence[Path],
    overrides: Sequence[str],
    seeds: Sequence[int] | None,
    out: Path,
    vary: tuple[str | None, Sequence[str]] = (None, ()),
) -> Plan:
    """Find or plan the runs of recipes.

    Args:
        recipes: recipe files.
        overrides: `--set` options for all of them.
        seeds: training seeds; None takes whatever is there already.
        out: output folder.
        vary: key and values; each value gets a folder `<out>/<key>=<value>` of its own.

    Raises:
        UserError: a recipe is wrong, two recipes would share a directory, or an existing run is of another recipe.
    """
    plan, problems, taken = Plan(), list[Problem](), dict[Path, Path]()
    key, values = vary
    settings = [(out / f"{key}={v}", (*overrides, f"{key}={v}")) for v in values] or [(out, tuple(overrides))]
    for file in recipes:
        for folder, sets in settings:
            try:
                _add(plan, file, sets, seeds, folder)
            except UserError as error:
                problems += error.problems
                break  # the other values would repeat the same mistakes
            first = taken.setdefault(folder / load_recipe(file, sets).name, file)
            if first != file:
                text = f"has the same name as {first}, so both would train in one directory"
                problems.append(Problem(text, "name", str(file), "give each recipe a name of its own"))
                break
    if problems:
        raise UserError(*dict.fromkeys(problems))
    return plan


def _add(plan: Plan, file: Path, sets: tuple[str, ...], seeds: Sequence[int] | None, out: Path) -> None:
    if seeds is None:
        name = load_recipe(file, sets).name
        found = list(runs_below(out / name)) if (out / name).is_dir() else []
        if not found:
            remedy = "add --seeds 0-4 to train them, or name the folder with --out"
            raise UserError(Problem(f"no runs of `{name}` in {out}", file=str(file), remedy=remedy))
        plan.runs += found
        return
    problems = list[Problem]()
    for seed in seeds:
        recipe = load_recipe(file, sets, seed)
        run_dir = RunDir.of(out, recipe)
        plan.runs.append(run_dir.path)
        if not run_dir.path.exists():
            plan.jobs.append(Job(file, sets, seed, out, run_dir.path, recipe.train.steps, resume=False))
            continue
        unfinished = _unfinished(run_dir)
        conflicts = [*_conflicts(run_dir, recipe), *(run_dir.other_streams() if unfinished else ())]
        problems += conflicts
        if not conflicts and unfinished:
            plan.jobs.append(Job(file, sets, seed, out, run_dir.path, recipe.train.steps, resume=True))
    if problems:
        raise UserError(*problems)


def _conflicts(run_dir: RunDir, recipe: Recipe) -> Iterator[Problem]:
    """An existing run is used only if it is of this recipe."""
    if not run_dir.recipe.is_file():
        yield Problem("exists and holds no recipe.yaml", file=str(run_dir.path), remedy="choose another --out")
        return
    for key, old, new in differences(load_recipe(run_dir.recipe), recipe):
        if key not in FREE_KEYS:
            yield Problem(
                f"was trained with {old!r}, the recipe now says {new!r}",
                key,
                str(run_dir.path),
                "choose another --out, or another name with --set name=...",
            )


def _unfinished(run_dir: RunDir) -> bool:
    try:
        return run_dir.read_record().status in ("running", "interrupted", "failed")
    except FileNotFoundError:
        return True  # stopped before its first record
    except (OSError, ValidationError):
        return False  # damaged; reading it will say so
