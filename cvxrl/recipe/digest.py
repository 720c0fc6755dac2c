"""Which recipe a number came from: a digest of the fields that can change a result, and in what two recipes differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cvxrl.recipe.base import ADDED, AMENDABLE, NEUTRAL, section_classes
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.yaml_file import read_mapping

Difference = tuple[str, Any, Any]


def digest(recipe: Recipe) -> str:
    """SHA-256 of the fields that can change a result, in canonical form."""
    return digest_of(recipe.model_dump(mode="json"))


def digest_of(values: Mapping[str, Any]) -> str:
    """The same of a recipe's contents; fields that cannot change a result may be missing."""
    return _digest(without_neutral(values))


def digests_as_written(path: Path) -> tuple[str, str]:
    """Digests of a run's `recipe.yaml` as it stands, whatever fields the schema has gained since it was written.

    Returns:
        That of the fields that can change a result, and that of all fields, which version 0.1 recorded.

    Raises:
        UserError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    values = read_mapping(path)
    return _digest(without_neutral(values)), _digest(values)


def differences(left: Recipe | Mapping[str, Any], right: Recipe | Mapping[str, Any]) -> list[Difference]:
    """Dotted keys that can change a result and in which two recipes, or their contents, differ, with both values.

    A value is None where a side lacks the key.
    """
    one, other = (side.model_dump(mode="json") if isinstance(side, Recipe) else side for side in (left, right))
    # Sections that are equal as a whole, most of them, need not be taken apart.
    alike = {key for key in one.keys() & other.keys() if one[key] == other[key]}
    a, b = ({key: side[key] for key in side if key not in alike} for side in (one, other))
    found = _unlike(without_neutral(a), without_neutral(b))
    # A field that is left out at its default has a value all the same.
    told_a, told_b = dict(leaves(a)), dict(leaves(b))
    return [(key, told_a.get(key), told_b.get(key)) for key, _, _ in found]


def neutral_differences(left: Recipe, right: Recipe) -> list[Difference]:
    """Dotted keys that cannot change a result and in which two recipes differ, with both values."""
    a, b = (side.model_dump(mode="json") for side in (left, right))
    counted = {key for key, _, _ in differences(left, right)}
    return [difference for difference in _unlike(a, b) if difference[0] not in counted]


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested mappings."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


@cache
def neutral_keys() -> frozenset[str]:
    """Dotted keys of the fields and sections that are marked as unable to change a result."""
    return frozenset(_marked(Recipe, "", NEUTRAL))


@cache
def amendable_keys() -> frozenset[str]:
    """Dotted keys of the fields and sections that a later session of a run may change."""
    return frozenset(_marked(Recipe, "", AMENDABLE))


@cache
def added_defaults() -> dict[str, Any]:
    """Dotted keys of the fields that are no part of a digest at their defaults, with those."""
    return dict(_defaults(Recipe, ""))


def is_in(key: str, marked: frozenset[str]) -> bool:
    """Whether a dotted key is one of ``marked``, or inside a section that is."""
    return any(f"{key}.".startswith(f"{one}.") for one in marked)


def _marked(section: type[BaseModel], prefix: str, mark: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        if mark in field.metadata:
            yield f"{prefix}{name}"
            continue
        for inner in section_classes(field.annotation):
            yield from _marked(inner, f"{prefix}{name}.", mark)


def _defaults(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, field in section.model_fields.items():
        if ADDED in field.metadata:
            default = field.default
            yield f"{prefix}{name}", default.model_dump(mode="json") if isinstance(default, BaseModel) else default
        for inner in section_classes(field.annotation):
            yield from _defaults(inner, f"{prefix}{name}.")


def without_neutral(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A recipe's contents without the fields that cannot change a result, and without later ones at their defaults."""
    kept, added = {}, added_defaults()
    for key, value in values.items():
        name = f"{prefix}{key}"
        if name not in neutral_keys() and not (name in added and value == added[name]):
            kept[key] = without_neutral(value, f"{name}.") if isinstance(value, dict) else value
    return kept


def _digest(values: Mapping[str, Any]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _unlike(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[Difference]:
    a, b = dict(leaves(left)), dict(leaves(right))
    return [(key, a.get(key), b.get(key)) for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
