"""docs/papers.md from specs and recipes, paper by paper: `python -m cvxrl.recipe.papers > docs/papers.md`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from cvxrl.recipe.advantage import AdvantageSpec
from cvxrl.recipe.base import kind_of, section_classes
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.objective import ObjectiveSpec
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.shipped import headline, shipped_recipes

_ARXIV = re.compile(r"(?:arXiv )?(\d{4}\.\d{5})\b")
_HEAD = """# Papers

Generated from the objectives, advantages and recipes by `python -m cvxrl.recipe.papers > docs/papers.md`; a test keeps
it current. What each equation means, its gradient and its curvature: [method.md](method.md). Where a recipe departs
from its paper, its header says so (`cvxrl train NAME --dry-run` prints all of its fields).

## Objectives

Equations are those of the fields' defaults; `--dry-run` prints a recipe's own.

"""


def index() -> str:
    """Whole page."""
    recipes = {name: load_recipe(file) for name, file in shipped_recipes().items()}
    trained = {kind: [n for n, r in recipes.items() if r.objective.kind == kind] for kind in _kinds(ObjectiveSpec)}
    credited = {kind: [n for n, r in recipes.items() if r.advantage.kind == kind] for kind in _kinds(AdvantageSpec)}
    objectives = (
        (_sources(spec), f"`{kind}`", _names(trained[kind]), _code(_equation(spec)) or "-")
        for kind, spec in _kinds(ObjectiveSpec).items()
    )
    advantages = (
        (_sources(spec), f"`{kind}`", _names(credited[kind]) if kind != "group" else "all others of rollouts")
        for kind, spec in _kinds(AdvantageSpec).items()
    )
    return "".join(
        [
            _HEAD,
            *_table(("paper", "`objective.kind`", "recipes", "loss per token"), objectives),
            "\n## Advantages\n\n",
            *_table(("paper", "`advantage.kind`", "recipes"), advantages),
            "\n## Recipes of a paper\n\nRecipes whose header names one.\n\n",
            *_table(("paper", "recipe", "what it is", "objective, advantage, reduction"), _of_papers(recipes)),
        ]
    )


def _kinds(union: object) -> dict[str, type[BaseModel]]:
    """Kinds of a section that are not a function of the user's."""
    found = {str(kind_of(spec)): spec for spec in section_classes(union)}
    return {kind: spec for kind, spec in found.items() if kind != "callable"}


def _of_papers(recipes: dict[str, Recipe]) -> Iterator[tuple[str, ...]]:
    for name, file in shipped_recipes().items():
        papers = _ARXIV.findall(_header(file))
        if papers:
            recipe = recipes[name]
            parts = (recipe.objective.kind, recipe.advantage.kind, recipe.reduction)
            yield ", ".join(map(_link, dict.fromkeys(papers))), f"`{name}`", headline(file), ", ".join(parts)


def _header(file: Path) -> str:
    """The comment that a recipe begins with."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))])


def _sources(spec: type[BaseModel]) -> str:
    """What the first paragraph of a section says about where it is from, its papers as links."""
    first = " ".join((spec.__doc__ or "").split("\n\n")[0].split())
    said = re.findall(r"\(([^()]*(?:arXiv|\b(?:19|20)\d\d\b)[^()]*)\)", first)
    return _ARXIV.sub(lambda found: _link(found[1]), "; ".join(said)) or "no paper"


def _link(number: str) -> str:
    return f"[arXiv {number}](https://arxiv.org/abs/{number})"


def _equation(spec: type[BaseModel]) -> str:
    try:
        return str(spec().equation)  # type: ignore[attr-defined]
    except ValidationError:  # a field without a default
        return ""


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none shipped"


def _code(text: str) -> str:
    """Code in a cell; a bar inside backticks ends the cell on GitHub, or keeps its backslash elsewhere."""
    bars = text.replace("|", "&#124;")
    return f"`{text}`" if bars == text else f"<code>{bars}</code>"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |\n|" + "---|" * len(head) + "\n"
    for row in rows:
        yield "| " + " | ".join(row) + " |\n"


if __name__ == "__main__":
    sys.stdout.write(index())
