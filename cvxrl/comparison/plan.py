"""Which runs recipes and seeds ask for, and which of them are still to be trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

from pydantic import ValidationError

from cvxrl.comparison.group import FREE_KEYS
from cvxrl.comparison.sources import runs_below
from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.recipe.digest import differences
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.merge import files_of
from cvxrl.recipe.schema import Recipe
from cvxrl.report.format import clock
from cvxrl.runs.directory import RunDir
from cvxrl.runs.jsonl import read_what_is_whole

# A recipe key and its values, as texts of `--set`.
Varied = tuple[str, Sequence[str]]


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
        resume: whether something of it exists already and is gone on with.
        overwrite: whether something exists that cannot be gone on with: steps were done and not saved.
    """

    recipe: Path
    overrides: tuple[str, ...]
    seed: int
    out: Path
    path: Path
    steps: int
    resume: bool
    overwrite: bool = False

    @property
    def name(self) -> str:
        """What the progress display calls it."""
        varied = [part for part in self.out.parts[-2:] if "=" in part]
        return " ".join([self.path.parent.name, *varied, self.path.name])


@dataclass(frozen=True)
class Planned:
    """A recipe file and what it says, with the overrides laid over it, for any of its seeds."""

    file: Path
    recipe: Recipe


@dataclass
class Plan:
    """What recipes stand for.

    Attributes:
        runs: run directories, trained or to be trained, in order.
        jobs: those of them that have to be trained.
        planned: the recipes, one per file and varied value.
        seeds: how many are asked for; 0 where whatever is there is taken.
        vary: the varied keys and the values of each that are trained; empty without any.
    """

    runs: list[Path] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    planned: list[Planned] = field(default_factory=list)
    seeds: int = 0
    vary: Sequence[Varied] = ()

    def describe(self, at_a_time: int) -> Iterator[str]:
        """Lines that say what is about to be trained, and how long it takes where finished runs tell.

        Args:
            at_a_time: runs trained at once.
        """
        methods = len({one.file for one in self.planned})
        values = "".join(f" x {len(values)} values of {key}" for key, values in self.vary)
        named = ", ".join(dict.fromkeys(one.recipe.name for one in self.planned))
        product = f"{_count(methods, 'method')}{values} x {_count(self.seeds, 'seed')}"
        yield f"{product} = {_count(len(self.runs), 'run')}: {named}"
        again = [job for job in self.jobs if job.overwrite]
        resumed = sum(job.resume for job in self.jobs)
        begun = len(self.jobs) - resumed - len(again)
        done = len(self.runs) - len(self.jobs)
        counts = ((done, "finished"), (resumed, "to go on"), (len(again), "to begin again"), (begun, "to begin"))
        yield f"{', '.join(f'{n} {what}' for n, what in counts if n)}: {self._time(at_a_time)}"
        for job in again:
            yield f"{job.name} begins again: its steps were done and not saved"

    def _time(self, at_a_time: int) -> str:
        paces = {path: pace for path in self.runs if (pace := seconds_per_step(path)) is not None}
        steps = sum(job.steps for job in self.jobs)
        if not paces:
            return f"{steps:,} steps, in a time that the first run will show"
        mean = sum(paces.values()) / len(paces)
        own = {p.parent: [s for path, s in paces.items() if path.parent == p.parent] for p in paces}
        seconds = sum(job.steps * _mean(own.get(job.path.parent, [mean])) for job in self.jobs)
        return f"{steps:,} steps, about {clock(seconds / min(at_a_time, len(self.jobs)))} at the pace of finished runs"


def plan_runs(
    recipes: Sequence[Path],
    overrides: Sequence[str],
    seeds: Sequence[int] | None,
    out: Path,
    vary: Sequence[Varied] = (),
) -> Plan:
    """Find or plan the runs of recipes.

    Args:
        recipes: recipe files.
        overrides: `--set` options for all of them.
        seeds: training seeds; None takes whatever is there already.
        out: output folder.
        vary: keys and values; each value gets a folder `<out>/<key>=<value>` of its own, each pair of values of two
            keys one inside the other.

    Raises:
        UserError: a recipe is wrong, two recipes would share a directory, or an existing run is of another recipe.
    """
    grid = [one for one in vary if one[1]]
    plan = Plan(seeds=len(seeds or ()), vary=grid)
    problems, taken = list[Problem](), dict[Path, Path]()
    cells = product(*([f"{key}={value}" for value in values] for key, values in grid))
    settings = [(out.joinpath(*cell), (*overrides, *cell)) for cell in cells]
    for file in recipes:
        for folder, sets in settings:
            try:
                _add(plan, file, sets, seeds, folder)
            except UserError as error:
                problems += error.problems
                break  # the other values would repeat the same mistakes
            recipe = load_recipe(file, sets)
            plan.planned.append(Planned(file, recipe))
            first = taken.setdefault(folder / recipe.name, file)
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
            lost = bool(run_dir.lost_steps())
            steps = recipe.train.steps
            plan.jobs.append(Job(file, sets, seed, out, run_dir.path, steps, resume=not lost, overwrite=lost))
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


def seconds_per_step(path: Path) -> float | None:
    """Of a run that is there, evaluations included; None where no step tells."""
    records = [r for r in read_what_is_whole(RunDir(path).metrics) if r.get("time/step_s") is not None]
    seconds = sum(r["time/step_s"] + (r.get("time/eval_s") or 0.0) for r in records)
    return seconds / len(records) if records else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def split_bases(recipes: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Recipes that are methods, and those that only hold what others share: they name no objective and are extended.

    Raises:
        UserError: a recipe cannot be read; one problem per mistake.
    """
    mistakes = Mistakes()
    files = {path: mistakes.attempt(files_of, path) for path in recipes}
    if mistakes.problems:
        raise UserError(*mistakes.problems)
    made_of = {path: [(file.resolve(), values) for file, values in found or ()] for path, found in files.items()}
    bases = [
        path
        for path, own in made_of.items()
        if not any("objective" in values for _, values in own)
        and any(path.resolve() in dict(other) for name, other in made_of.items() if name != path)
    ]
    return [path for path in made_of if path not in bases], bases
