"""What the shell offers when Tab is pressed: recipes by name, and keys for `--set`; files it knows itself.

Called in a process of its own at every press, so nothing heavy is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import BaseModel


def recipe_names(incomplete: str) -> list[str]:
    """Names of the package's recipes that begin so."""
    from cvxrl.recipe.shipped import shipped_recipes

    return [name for name in shipped_recipes() if name.startswith(incomplete)]


def recipe_keys(incomplete: str) -> list[str]:
    """`section.key=` for every key of a recipe that begins so."""
    from cvxrl.recipe.schema import Recipe

    return sorted({f"{key}=" for key in _keys(Recipe, "") if key.startswith(incomplete)})


def _keys(section: type[BaseModel], prefix: str) -> Iterator[str]:
    """Dotted keys of a section and of those inside it; the elements of lists have none."""
    from cvxrl.recipe.base import section_classes

    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        if not str(field.annotation).startswith(("tuple", "typing.Tuple")):
            for inner in section_classes(field.annotation):
                yield from _keys(inner, f"{prefix}{name}.")
