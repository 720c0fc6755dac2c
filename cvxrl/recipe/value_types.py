"""Values are what they are written as: `true` is no number, quoted text neither, and a number has an end."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cvxrl.recipe.expand import map_fields

# Whole numbers above this are not exact in JSON readers, nor as floats.
_LARGEST = 2**53


def mistaken_values(values: Mapping[str, Any], root: type[BaseModel]) -> dict[str, tuple[str, str]]:
    """Values that validation would turn into something else, as `true` into the number 1 or "8" into 8.

    Args:
        values: of a recipe, or of what else ``root`` describes.
        root: the schema.

    Returns:
        For each dotted key what is wrong, and what to do.
    """
    found: dict[str, tuple[str, str]] = {}

    def look(key: str, value: Any, fields: Sequence[FieldInfo]) -> Any:
        if value is None or isinstance(value, Mapping):
            return value
        admitted = {kind for field in fields for kind in _leaf_types(field.annotation)}
        for one in value if isinstance(value, list) else [value]:
            wrong = _mistake(one, admitted)
            if wrong is not None:
                found[key] = wrong
        return value

    map_fields(values, [root], look)
    return found


def _mistake(value: Any, admitted: set[Any]) -> tuple[str, str] | None:
    number = bool(admitted & {int, float})
    shown = str(value).lower() if isinstance(value, bool) else f"`{value}`"
    if number and isinstance(value, bool | str) and type(value) not in admitted:
        return f"{shown} is not a number", "write a number, without quotes"
    if admitted == {bool} and isinstance(value, int | float | str) and not isinstance(value, bool):
        return f"{shown} is neither true nor false", "write true or false"
    if number and isinstance(value, int) and abs(value) > _LARGEST:
        return f"the number, of {len(str(abs(value)))} digits, is beyond 2^53", "write a smaller one"
    return None


def _leaf_types(annotation: Any) -> Iterator[Any]:
    """Types that a field or the elements of its list may have, None left out; a choice of texts is `str`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _leaf_types(arguments[0])
    elif origin is Literal:
        yield from {type(choice) for choice in arguments}
    elif origin in (Union, types.UnionType, tuple):
        for member in arguments:
            yield from _leaf_types(member)
    elif annotation not in (type(None), Ellipsis):
        yield annotation
