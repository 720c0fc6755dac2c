"""Look into the schema: which section class stands at a dotted key."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


def section_classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """Section classes that a field's annotation admits: itself, or the members of a union."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from section_classes(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for member in get_args(annotation):
            yield from section_classes(member)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


def kind_of(section: type[BaseModel]) -> str | None:
    """Tag of a union member, or None."""
    field = section.model_fields.get("kind")
    return str(field.default) if field is not None else None


def section_at(root: type[BaseModel], values: Any, key: Sequence[str]) -> type[BaseModel] | None:
    """Section class at ``key``, picking union members by the `kind` in ``values``; None if there is none."""
    section: type[BaseModel] | None = root
    for part in key:
        if section is None or part not in section.model_fields:
            return None
        values = values.get(part) if isinstance(values, Mapping) else None
        field = section.model_fields[part]
        classes = list(section_classes(field.annotation))
        kind = values.get("kind") if isinstance(values, Mapping) else None
        if kind is None and isinstance(field.default, BaseModel):
            kind = kind_of(type(field.default))
        section = next((c for c in classes if kind_of(c) == kind), classes[0] if len(classes) == 1 else None)
    return section


def tags_at(root: type[BaseModel], values: Any, key: Sequence[str]) -> list[str]:
    """Tags of the union at ``key``; the root, an empty key, is none."""
    if not key:
        return []
    parent = section_at(root, values, key[:-1])
    if parent is None or key[-1] not in parent.model_fields:
        return []
    return [tag for c in section_classes(parent.model_fields[key[-1]].annotation) if (tag := kind_of(c))]
