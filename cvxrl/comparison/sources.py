"""From the paths of the command line to runs and recipes, by whoever knows how to read them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from cvxrl.comparison.foreign.formats import FOREIGN, ForeignLogs, hold_together
from cvxrl.comparison.foreign.inside import file_of
from cvxrl.comparison.foreign.label import Label, Stated
from cvxrl.comparison.foreign.log import ForeignRun
from cvxrl.comparison.readers import processes_for, read_all
from cvxrl.comparison.run import LoggedRun, Run
from cvxrl.comparison.run_directory import RunDirectories
from cvxrl.errors import Mistakes, Problem, UserError, suggest
from cvxrl.recipe.shipped import named_recipe

_RECIPE_SUFFIXES = (".yaml", ".yml")


class Source(Protocol):
    """Reads the runs that one program writes."""

    def owns(self, path: Path) -> bool:
        """Whether this file or folder is one of its runs, whole or damaged.

        It is asked about everything below a folder that is given, so it looks at names and first bytes only. What is
        inside a folder that is a run is nobody else's.
        """
        ...

    def read(self, path: Path) -> Run:
        """Read a run that it owns.

        Raises:
            UserError: it is damaged, with one problem per file.
        """
        ...


_OURS = RunDirectories()
# Each path belongs to the first that owns it. A source of other logs is a module of its own and an entry here.
SOURCES: list[Source] = [_OURS, *FOREIGN]


@dataclass
class Found:
    """What the paths hold, in the order given.

    Attributes:
        runs: files and folders that are runs, each once.
        recipes: recipe files, each once.
        problems: paths that hold neither.
    """

    runs: list[Path] = field(default_factory=list)
    recipes: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def add(self, other: Found) -> None:
        """Take what others found too; what both found counts once."""
        known = {run.resolve() for run in other.runs}
        self.runs = [*(run for run in self.runs if run.resolve() not in known), *other.runs]
        self.recipes += other.recipes
        self.problems += other.problems


def discover(paths: Sequence[str]) -> Found:
    """Sort paths into runs and recipes; expand globs, find recipes by name and runs below other folders."""
    found = Found()
    for text in paths:
        is_there = os.path.lexists(text) or _owner(Path(text)) is not None  # or it names a run in a file
        matches = [text] if is_there else sorted(glob.glob(text, recursive=True))
        if not matches and (recipe := named_recipe(text)) is not None:
            matches = [str(recipe)]
        if not matches:
            found.problems.append(
                Problem(
                    "nothing matches", file=text, remedy="give run directories, folders of them, recipes or their names"
                )
            )
        for match in matches:
            _sort(Path(match), found)
    found.runs = list({run.resolve(): run for run in reversed(found.runs)}.values())[::-1]
    found.recipes = list({recipe.resolve(): recipe for recipe in reversed(found.recipes)}.values())[::-1]
    return found


def discover_stated(labels: Sequence[tuple[str, Label]], aliases: Mapping[str, str]) -> tuple[Found, Stated]:
    """Find the runs that the user gives a method and a seed; each path must hold exactly one."""
    found, by_path = Found(), dict[Path, Label]()
    for text, label in labels:
        here = discover([text])
        own = [run for run in here.runs if isinstance(_owner(run), RunDirectories)]
        if here.problems or here.recipes or own or len(here.runs) != 1:
            what = f"`{text}` holds {len(here.runs) or 'no'} runs: {', '.join(map(str, here.runs[:3]))}"
            remedy = "give one of them" if here.runs else "give a log, or a folder with one"
            if own:
                what, remedy = f"`{text}` is a run directory, which says what it is", "give it as a PATH"
            found.problems.append(Problem(what, "--as", remedy=remedy))
            continue
        found.runs += here.runs
        if by_path.setdefault(here.runs[0].absolute(), label) != label:
            found.problems.append(Problem(f"`{text}` is given twice, as two runs", "--as", remedy="give it once"))
    return found, Stated(by_path, aliases)


def runs_below(folder: Path) -> Iterator[Path]:
    """The folder itself if it is a run, or else the runs in it, at any depth; what begins with a dot is passed over."""
    for name, folders, files in os.walk(folder):
        folders.sort()
        here = Path(name)
        if _owner(here) is not None:
            folders.clear()
            yield here
            continue
        folders[:] = [f for f in folders if not f.startswith(".")]
        for file in (here / f for f in sorted(files) if not f.startswith(".")):
            yield from _runs_in(file)


def read_runs(paths: Iterable[Path], stated: Stated | None = None) -> tuple[list[Run], list[Problem]]:
    """Runs that can be read, and what is wrong with the others.

    Args:
        paths: runs, as `discover` finds them.
        stated: what the user says of foreign ones.
    """
    mistakes = Mistakes()
    paths = list(paths)
    ours = [path for path in paths if _owner(path) is _OURS]
    # Other programs' logs are rows in memory, which take as long to pass on as to read.
    outcomes = dict(zip(ours, read_all(_OURS.read, ours, processes_for(ours)), strict=True))
    found = [mistakes.attempt(_run, path, stated, outcomes.get(path)) for path in paths]
    runs = hold_together(run for run in found if run is not None)
    foreign = [run for run in runs if isinstance(run, ForeignRun)]
    for theirs in (stated.aliases if stated is not None else {}).values():
        known = {name for run in foreign for name in run.names}
        if theirs not in known:
            remedy = f"{suggest(theirs, known)}there are: {', '.join(sorted(known))}" if known else "give foreign logs"
            mistakes.problems.append(Problem(f"no log has a metric `{theirs}`", "--alias", remedy=remedy))
    return runs, mistakes.problems


def read_run(path: Path, stated: Stated | None = None) -> Run:
    """Read one run.

    Raises:
        UserError: it is damaged, or there is none; one problem per file.
    """
    owner = _owner(path) or _OURS
    if isinstance(owner, ForeignLogs):
        return owner.read(path, stated)
    run, label = owner.read(path), stated.labels.get(path.absolute()) if stated is not None else None
    return run if label is None or not isinstance(run, LoggedRun) else replace(run, **vars(label))


def _run(path: Path, stated: Stated | None, outcome: Run | UserError | None) -> Run:
    if isinstance(outcome, UserError):
        raise outcome
    return read_run(path, stated) if outcome is None else outcome


def _owner(path: Path) -> Source | None:
    return next((source for source in SOURCES if source.owns(path)), None)


def _runs_in(file: Path) -> list[Path]:
    """The runs that a file is, or holds."""
    owner = _owner(file)
    if owner is None:
        return []
    return owner.inside(file) if isinstance(owner, ForeignLogs) and file == file_of(file) else [file]


def _sort(path: Path, found: Found) -> None:
    if path.is_dir():
        runs = list(runs_below(path))
        found.runs += runs
        if not runs:
            found.problems.append(
                Problem("no run directory here or below", file=str(path), remedy="train first, or give another folder")
            )
    elif runs := _runs_in(path):
        found.runs += runs
    elif path.suffix in _RECIPE_SUFFIXES:
        found.recipes.append(path)
    else:
        found.problems.append(
            Problem(
                "neither a run directory nor a log nor a recipe",
                file=str(path),
                remedy="give a folder, a log or a .yaml file",
            )
        )
