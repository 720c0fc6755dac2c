"""What there is to train: recipes below the help of `cvxrl train`, and `--list`, which adds kinds of sections."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import typer
from typer.core import TyperCommand

_WIDTH = 80


class TrainCommand(TyperCommand):
    """A command whose help ends with the recipes that it can be given by name."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, then a line per recipe; their files are read only now."""
        super().format_help(ctx, formatter)
        typer.echo("\n".join(_recipes()) + "\n")


def list_and_exit(asked: bool) -> None:
    """Callback of `--list`: recipes, objectives and advantages, a line each, on stdout."""
    if not asked:
        return
    from cvxrl.recipe.advantage import AdvantageSpec
    from cvxrl.recipe.objective import ObjectiveSpec

    typer.echo("\n".join(_recipes()) + "\n")
    typer.echo("\n".join(_section("Objectives: objective.kind", _kinds(ObjectiveSpec))) + "\n")
    typer.echo("\n".join(_section("Advantages: advantage.kind", _kinds(AdvantageSpec))))
    raise typer.Exit


def _recipes() -> Iterator[str]:
    from cvxrl.recipe.shipped import headline, shipped_recipes

    return _section("Recipes", {name: headline(file) for name, file in shipped_recipes().items()})


def _kinds(union: Any) -> dict[str, str]:
    """Kinds of a section with what its `kind` field says of itself."""
    from cvxrl.recipe.base import kind_of, section_classes

    return {str(kind_of(spec)): spec.model_fields["kind"].description or "" for spec in section_classes(union)}


def _section(title: str, entries: Mapping[str, str]) -> Iterator[str]:
    """A title and a line per entry, the description cut to the width."""
    yield f" {title}"
    column = max(map(len, entries), default=0)
    for name, text in entries.items():
        yield f"   {name:{column}}  {textwrap.shorten(text, _WIDTH - column - 5, placeholder=' ...')}"
