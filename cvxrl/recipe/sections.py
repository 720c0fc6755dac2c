"""Look into the schema: which section class stands at a dotted key."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


def section_classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """Section classes that a field's annotation admits: itself, the members of a union, or the elements of a list."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from section_classes(get_args(annotation)[0])
    elif origin in (Union, types.UnionType, tuple):
        for member in get_args(annotation):
            yield from section_classes(member)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


def kind_of(section: type[BaseModel]) -> str | None:
    """Tag of a union member, or None."""
    field = section.model_fields.get("kind")
    return str(field.default) if field is not None else None


def section_at(root: type[BaseModel], values: Any, key: Sequence[str]) -> type[BaseModel] | None:
    """Section class at ``key``, picking union members by the `kind` in ``values``; None if there is none.

    The elements of a list go by their numbers, as in `logging.sinks.0`.
    """
    section: type[BaseModel] | None = root
    classes: list[type[BaseModel]] = []
    for part in key:
        default = None
        if isinstance(values, list) and part.isdecimal():
            values = values[int(part)] if int(part) < len(values) else None
        elif section is None or part not in section.model_fields:
            return None
        else:
            values = values.get(part) if isinstance(values, Mapping) else None
            field = section.model_fields[part]
            classes = list(section_classes(field.annotation))
            default = kind_of(type(field.default)) if isinstance(field.default, BaseModel) else None
        kind = values.get("kind", default) if isinstance(values, Mapping) else default
        section = next((c for c in classes if kind_of(c) == kind), classes[0] if len(classes) == 1 else None)
    return section


def tags_at(root: type[BaseModel], values: Any, key: Sequence[str]) -> list[str]:
    """Tags of the union at ``key``, or of a list's elements; the root, an empty key, is none."""
    while key and key[-1].isdecimal():
        key = key[:-1]
    if not key:
        return []
    parent = section_at(root, values, key[:-1])
    if parent is None or key[-1] not in parent.model_fields:
        return []
    return [tag for c in section_classes(parent.model_fields[key[-1]].annotation) if (tag := kind_of(c))]
