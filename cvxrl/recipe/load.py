"""Load a recipe: every mistake at once, each with its file, key and remedy."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cvxrl.errors import Problem, UserError, did_you_mean, nearest, suggest
from cvxrl.recipe.base import kind_of, section_classes
from cvxrl.recipe.merge import Layers, read_layers
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.shipped import find_recipe
from cvxrl.recipe.value_types import mistaken_values
from cvxrl.recipe.yaml_file import write_mapping

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
    layers = read_layers(find_recipe(path), overrides, Recipe)
    if seed is not None:
        layers.add({"seed": seed}, "--seed")
    return check(Recipe, layers)


def check(root: type[_Root], layers: Layers) -> _Root:
    """Validate merged layers as a recipe, or as another kind of file.

    Raises:
        UserError: with one problem per mistake.
    """
    mistaken = mistaken_values(layers.values, root)
    problems = [
        Problem(message, key, layers.origin(key.split(".")), remedy) for key, (message, remedy) in mistaken.items()
    ]
    try:
        checked = root.model_validate(layers.values)
    except ValidationError as error:
        others = (p for details in error.errors() for p in _explain(details, layers, root))
        problems += [p for p in dict.fromkeys(others) if not any(f"{p.key}.".startswith(f"{m}.") for m in mistaken)]
    if problems:
        raise UserError(*problems)
    return checked


def dump(recipe: Recipe) -> str:
    """Resolved recipe as YAML, paths as from the working folder; loaded there it has the same digest."""
    return write_mapping(recipe.model_dump(mode="json"))


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
        yield Problem("unknown key", key, file, _remedy_for_key(loc, _section_at(root, layers.values, loc[:-1]), root))
    elif kind == "missing" and loc[-1].isdecimal():
        yield Problem("has too few values", ".".join(loc[:-1]), file, f"give at least {int(loc[-1]) + 1}")
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
        remedy = {"string_type": "put it in quotes", "model_type": "write the keys below it"}.get(kind)
        message = message.replace("valid tuple", "list").replace("valid dictionary", "mapping")  # YAML's words
        yield Problem(
            f"{message[:1].lower()}{message[1:]}, got {given[:80]}", key, file, remedy or "give a value of that type"
        )


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


def _remedy_for_key(loc: Sequence[str], section: type[BaseModel] | None, root: type[BaseModel]) -> str:
    """What was meant: a key of this section, one of that name or meaning elsewhere, or what there is here."""
    fields, key, name = list(_fields(root, "")), ".".join(loc), loc[-1]
    kinds = [kind for kind, other, _ in fields if other == key and kind]
    if kinds:
        return f"it is a key of {', '.join(kinds)}, which this is not"
    known = list(section.model_fields) if section else []
    same = [other for _, other, _ in fields if name == other.rpartition(".")[2]]
    near = suggest(name, known).strip() if not same else ""
    meant = list(dict.fromkeys(same or ([] if near or len(loc) > 2 else _meaning(name, fields))))
    if meant:
        return did_you_mean(meant[:3]).strip()
    return near or (f"known keys here: {', '.join(known)}" if known else "remove it")


def _meaning(name: str, fields: Sequence[tuple[str | None, str, str]]) -> list[str]:
    """Keys with the word in their names, else that whose first sentence is mostly its words, else those named alike."""
    names = {key: key.rpartition(".")[2] for _, key, _ in fields}
    within = [key for key in names if name in names[key].split("_")]
    words = name.replace("_", " ").replace("-", " ").lower()
    first = {key: text.lower().partition(". ")[0] for _, key, text in fields}
    described = sorted((key for key in first if " " in words and words in first[key]), key=lambda key: len(first[key]))
    alike = nearest(name, names.values(), cutoff=0.7)
    return within or described[:1] or [key for key in names if names[key] in alike]


def _fields(section: type[BaseModel], prefix: str) -> Iterator[tuple[str | None, str, str]]:
    """Kind of section, dotted key and description of every field of a section and of those inside it."""
    for name, field in section.model_fields.items():
        inner = list(section_classes(field.annotation))
        if not inner and name != "kind":
            yield kind_of(section), f"{prefix}{name}", field.description or ""
        for one in inner:
            yield from _fields(one, f"{prefix}{name}.")
