"""Load a recipe: every mistake at once, each with its file, key and remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cvxrl.errors import Problem, UserError, suggest
from cvxrl.recipe.base import kind_of, section_classes
from cvxrl.recipe.merge import Layers, read_layers
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.shipped import find_recipe

_Root = TypeVar("_Root", bound=BaseModel)


def load_recipe(path: Path | str, overrides: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """Read, merge and check a recipe.

    Args:
        path: YAML file, or the bare name of a recipe of the package.
        overrides: `key=value` texts, laid over the file in order.
        seed: laid over everything, if given.

    Raises:
        UserError: with one problem per mistake.
    """
    layers = read_layers(find_recipe(path), overrides)
    if seed is not None:
        layers.add({"seed": seed}, "--seed")
    return check(Recipe, layers)


def check(root: type[_Root], layers: Layers) -> _Root:
    """Validate merged layers as a recipe, or as another kind of file.

    Raises:
        UserError: with one problem per mistake.
    """
    try:
        return root.model_validate(layers.values)
    except ValidationError as error:
        problems = [p for details in error.errors() for p in _explain(details, layers, root)]
        raise UserError(*dict.fromkeys(problems)) from None


def dump(recipe: Recipe) -> str:
    """Resolved recipe as YAML; loading it gives a recipe with the same digest."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100)


def _section_at(root: type[BaseModel], values: Any, key: Sequence[str]) -> type[BaseModel] | None:
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


def _tags_at(root: type[BaseModel], values: Any, key: Sequence[str]) -> list[str]:
    """Tags of the union at ``key``, or of a list's elements; the root, an empty key, is none."""
    while key and key[-1].isdecimal():
        key = key[:-1]
    if not key:
        return []
    parent = _section_at(root, values, key[:-1])
    if parent is None or key[-1] not in parent.model_fields:
        return []
    return [tag for c in section_classes(parent.model_fields[key[-1]].annotation) if (tag := kind_of(c))]


def _explain(details: ErrorDetails, layers: Layers, root: type[BaseModel]) -> Iterator[Problem]:
    """Turn one of pydantic's errors into problems in the user's words."""
    loc = _without_tags(details["loc"], layers.values, root)
    key, file = ".".join(loc), layers.origin(loc)
    kind, message = details["type"], details["msg"]
    if kind == "extra_forbidden":
        yield Problem("unknown key", key, file, _remedy_for_key(loc[-1], _section_at(root, layers.values, loc[:-1])))
    elif kind == "missing":
        yield Problem("missing", key, file, f"add `{loc[-1]}`")
    elif kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = _tags_at(root, layers.values, loc)
        given = details["input"].get("kind") if isinstance(details["input"], Mapping) else None
        what = "no `kind` given" if given is None else f"unknown kind `{given}`"
        yield Problem(what, f"{key}.kind", file, f"{suggest(str(given), tags)}choose one of {', '.join(tags)}")
    elif kind == "value_error":
        for line in message.removeprefix("Value error, ").splitlines():
            yield _own_message(line, key, layers, file)
    elif kind == "string_pattern_mismatch":
        yield Problem(f"`{details['input']}` has characters that are not allowed", key, file, f"match {message[30:]}")
    else:
        given = json.dumps(details["input"], default=str)
        message = message.replace("valid tuple", "list").replace("valid dictionary", "mapping")  # YAML's words
        yield Problem(f"{message[:1].lower()}{message[1:]}, got {given[:80]}", key, file, "give a value of that type")


def _own_message(line: str, key: str, layers: Layers, file: str) -> Problem:
    """Our own validators write `message; remedy`, prefixed by `key: ` where they speak of the whole recipe."""
    text, _, remedy = line.partition("; ")
    named, colon, rest = text.partition(": ")
    if not key and colon and " " not in named:
        return Problem(rest, named, layers.origin(named.split(".")), remedy)
    return Problem(text, key, file, remedy or "change the value")


def _without_tags(loc: Sequence[str | int], values: Any, root: type[BaseModel]) -> tuple[str, ...]:
    """Pydantic inserts a union's tag into the location; drop every part that is a tag rather than a key."""
    parts: list[str] = []
    inside = values
    for part in loc:
        is_tag = isinstance(inside, Mapping) and part not in inside and str(part) in _tags_at(root, values, parts)
        if parts and is_tag:
            continue
        parts.append(str(part))
        if isinstance(inside, list):
            inside = inside[part] if isinstance(part, int) and part < len(inside) else None
        else:
            inside = inside.get(part) if isinstance(inside, Mapping) else None
    return tuple(parts)


def _remedy_for_key(key: str, section: type[BaseModel] | None) -> str:
    known = list(section.model_fields) if section else []
    near = suggest(key, known, cutoff=0.5).strip()
    return near or (f"known keys here: {', '.join(known)}" if known else "remove it")
