"""Recipes that come with the package, found by their bare names. Imports no schema: a help text lists them."""

from __future__ import annotations

from pathlib import Path

from cvxrl.errors import Problem, UserError, suggest

_SUFFIXES = (".yaml", ".yml")
# Folder of the recipes of a paper's scale, which takes machines with GPUs; their names are found without it too.
PAPER = "paper"


def recipes_folder() -> Path:
    """Where the package's recipes are: beside its modules in a wheel, at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Recipe files of the package by name, those of a paper's scale last."""
    folder = recipes_folder()
    return {file.stem: file for where in (folder, folder / PAPER) for file in sorted(where.glob("*.yaml"))}


def named_recipe(given: Path | str) -> Path | None:
    """Recipe of the package with this name, `paper/` before it or not; None if there is none."""
    shipped = shipped_recipes()
    paper = {f"{PAPER}/{name}": file for name, file in shipped.items() if file.parent.name == PAPER}
    return (shipped | paper).get(str(given))


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
    if path.is_file() or path.suffix in _SUFFIXES:
        return path
    shipped = named_recipe(given)
    if shipped is not None:
        return shipped
    if len(path.parts) != 1 and path.parts[0] != PAPER:
        return path
    known = shipped_recipes()
    remedy = f"{suggest(path.name, known)}give a .yaml file, or one of {', '.join(known)}"
    raise UserError(Problem(f"there is no recipe `{name}`", remedy=remedy))
