"""From the paths of the command line to runs and recipes, by whoever knows how to read them."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cvxrl.comparison.run import Run
from cvxrl.comparison.run_directory import RunDirectories
from cvxrl.errors import Mistakes, Problem
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


# Each path belongs to the first that owns it. A source of other logs is a module of its own and an entry here.
SOURCES: list[Source] = [RunDirectories()]


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


def discover(paths: Sequence[str]) -> Found:
    """Sort paths into runs and recipes; expand globs, find recipes by name and runs below other folders."""
    found = Found()
    for text in paths:
        matches = [text] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True))
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
        yield from (here / f for f in sorted(files) if not f.startswith(".") and _owner(here / f) is not None)


def read_runs(paths: Iterable[Path]) -> tuple[list[Run], list[Problem]]:
    """Runs that can be read, and what is wrong with the others."""
    mistakes = Mistakes()
    runs = [mistakes.attempt(read_run, path) for path in paths]
    return [run for run in runs if run is not None], mistakes.problems


def read_run(path: Path) -> Run:
    """Read one run.

    Raises:
        UserError: it is damaged, or there is none; one problem per file.
    """
    return (_owner(path) or RunDirectories()).read(path)


def _owner(path: Path) -> Source | None:
    return next((source for source in SOURCES if source.owns(path)), None)


def _sort(path: Path, found: Found) -> None:
    if path.is_dir():
        runs = list(runs_below(path))
        found.runs += runs
        if not runs:
            found.problems.append(
                Problem("no run directory here or below", file=str(path), remedy="train first, or give another folder")
            )
    elif _owner(path) is not None:
        found.runs.append(path)
    elif path.suffix in _RECIPE_SUFFIXES:
        found.recipes.append(path)
    else:
        found.problems.append(
            Problem("neither a run directory nor a recipe", file=str(path), remedy="give a folder or a .yaml file")
        )
