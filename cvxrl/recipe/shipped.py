"""Recipes that come with the package, found by their bare names. Imports no schema: a help text lists them."""

from __future__ import annotations

from pathlib import Path

from cvxrl.errors import Problem, UserError, suggest

_SUFFIXES = (".yaml", ".yml")


def shipped_recipes() -> dict[str, Path]:
    """Recipe files of the package by name: beside its modules in a wheel, at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    folder = inside if inside.is_dir() else package.parent / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def headline(recipe: Path) -> str:
    """What a recipe's header says it is: the first line of its leading comment."""
    with recipe.open(encoding="utf-8") as lines:
        first = lines.readline().strip()
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def find_recipe(given: Path | str) -> Path:
    """File that a path or the bare name of a shipped recipe stands for.

    A path that exists, or that looks like one because it has a folder or ends in `.yaml`, is taken as it is.

    Raises:
        UserError: no recipe has this name; the remedy lists those that there are.
    """
    path, name = Path(given), str(given)
    if path.is_file() or path.suffix in _SUFFIXES or len(path.parts) != 1:
        return path
    shipped = shipped_recipes()
    if name not in shipped:
        remedy = f"{suggest(name, shipped)}give a .yaml file, or one of {', '.join(shipped)}"
        raise UserError(Problem(f"there is no recipe `{name}`", remedy=remedy))
    return shipped[name]
