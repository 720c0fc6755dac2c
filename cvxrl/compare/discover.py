"""From the paths of the command line to run directories and recipes."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cvxrl.errors import Problem
from cvxrl.recipe.shipped import shipped_recipes

_RECIPE_SUFFIXES = (".yaml", ".yml")


@dataclass
class Found:
    """What the paths hold, in the order given.

    Attributes:
        runs: run directories, each once.
        recipes: recipe files, each once.
        problems: paths that hold neither.
    """

    runs: list[Path] = field(default_factory=list)
    recipes: list[Path] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def discover(paths: Sequence[str]) -> Found:
    """Sort paths into run directories and recipes; expand globs, find recipes by name and runs below other folders."""
    found = Found()
    for text in paths:
        matches = [text] if os.path.lexists(text) else sorted(glob.glob(text, recursive=True))
        if not matches and text in shipped_recipes():
            matches = [str(shipped_recipes()[text])]
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
    """Run directories in a folder, at any depth."""
    for name, folders, _ in os.walk(folder):
        folders.sort()
        if looks_like_a_run(Path(name)):
            folders.clear()
            yield Path(name)
        folders[:] = [f for f in folders if not f.startswith(".")]


def looks_like_a_run(path: Path) -> bool:
    """Whether a folder is a run directory, whole or damaged; a damaged one must not be passed over in silence."""
    return path.name.startswith("seed-") or (path / "run.json").exists() or (path / "metrics.jsonl").exists()


def _sort(path: Path, found: Found) -> None:
    if path.is_dir():
        runs = list(runs_below(path))
        found.runs += runs
        if not runs:
            found.problems.append(
                Problem("no run directory here or below", file=str(path), remedy="train first, or give another folder")
            )
    elif path.suffix in _RECIPE_SUFFIXES:
        found.recipes.append(path)
    else:
        found.problems.append(
            Problem("neither a run directory nor a recipe", file=str(path), remedy="give a folder or a .yaml file")
        )
