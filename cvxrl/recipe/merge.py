"""Inheritance of recipes on plain mappings: `extends`, the preset of a `reading`, and `--set`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from cvxrl.errors import Problem, UserError, suggest
from cvxrl.recipe.expand import anchor_paths, spell_out
from cvxrl.recipe.reading import preset
from cvxrl.recipe.shipped import named_recipe, shipped_recipes
from cvxrl.recipe.yaml_file import parse_value, read_mapping

_COMMAND_LINE = "--set"


class Layers:
    """A merged mapping that remembers which file wrote each leaf."""

    def __init__(self, root: type[BaseModel]) -> None:
        """Start empty; ``root`` is what the merged values are going to be checked as."""
        self.root = root
        self.values: dict[str, Any] = {}
        self._origin: dict[tuple[str, ...], str] = {}

    def add(self, values: Mapping[str, Any], origin: str) -> None:
        """Lay ``values`` over what is there; see `merge`. A `reading` they name puts its preset right below them."""
        values = spell_out(values, self.root)
        if "reading" in values:
            self.values = merge(self.values, preset(merge(self.values, values)))
        self.values = merge(self.values, values)
        self._note(values, (), origin)

    def origin(self, key: Sequence[str]) -> str:
        """File (or `--set`) that last wrote the key or the nearest section around it."""
        path = tuple(key)
        while path:
            if path in self._origin:
                return self._origin[path]
            path = path[:-1]
        return self._origin.get((), "")

    def _note(self, values: Mapping[str, Any], prefix: tuple[str, ...], origin: str) -> None:
        self._origin[prefix] = origin
        for key, value in values.items():
            if isinstance(value, Mapping):
                self._note(value, (*prefix, str(key)), origin)
            else:
                self._origin[(*prefix, str(key))] = origin


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings merge key by key; everything else replaces.

    A mapping that changes its `kind` replaces the inherited one: the fields of another kind would not belong to it.
    """
    if "kind" in above and "kind" in below and above["kind"] != below["kind"]:
        return dict(above)
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def read_layers(path: Path, overrides: Sequence[str], root: type[BaseModel]) -> Layers:
    """Merge a recipe file, what it extends, and `--set` overrides.

    Raises:
        UserError: a file is missing or malformed, `extends` runs in a circle, a path starts at the wrong folder, or an
            override is not key=value.
    """
    layers = Layers(root)
    problems = []
    for file, values in files_of(path):
        anchored, misplaced = anchor_paths(values, root, file)
        layers.add(anchored, str(file))
        problems += misplaced
    problems += override(layers, overrides)
    if problems:
        raise UserError(*problems)
    return layers


def override(layers: Layers, overrides: Sequence[str]) -> list[Problem]:
    """Lay `--set` overrides over what is there, in order; returns what is wrong with those that are no key=value."""
    given: dict[str, Any] = {}
    problems = []
    for text in overrides:
        try:
            given = merge(given, spell_out(_override(text), layers.root))
        except ValueError as error:
            problems.append(Problem(str(error), file=_COMMAND_LINE, remedy="write --set section.key=value"))
    if given:
        layers.add(given, _COMMAND_LINE)
    return problems


def files_of(path: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Files that make a recipe, from the most basic to ``path``, each with what it says itself.

    Raises:
        UserError: a file is missing or malformed, or `extends` runs in a circle.
    """
    return _chain(path, ())


def _chain(path: Path, above: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """Files from the most basic to ``path``, each without its `extends`."""
    resolved = path.resolve()
    if resolved in above:
        names = " -> ".join(p.name for p in (*above, resolved))
        raise UserError(Problem(f"runs in a circle: {names}", "extends", str(path), "remove one of them"))
    values = read_mapping(path)
    parents = values.pop("extends", None)
    names_of = [parents] if isinstance(parents, str) else [] if parents is None else parents
    if not isinstance(names_of, list) or not all(isinstance(p, str) for p in names_of):
        raise UserError(
            Problem("must be a file, a recipe's name or a list of them", "extends", str(path), "extends: base.yaml")
        )
    found: list[tuple[Path, dict[str, Any]]] = []
    for name in names_of:
        beside = resolved.parent / name
        parent = beside if beside.is_file() else named_recipe(name) or beside
        if not parent.is_file():
            remedy = (
                f"{suggest(name, shipped_recipes())}paths are relative to this file, names are of the package's recipes"
            )
            missing = os.path.relpath(parent)
            raise UserError(Problem(f"no such file: {missing}", "extends", str(path), remedy))
        found += _chain(parent, (*above, resolved))
    return [*found, (path, values)]


def _override(text: str) -> dict[str, Any]:
    key, equals, raw = text.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ValueError(f"`{text}` is not of the form key=value")
    value: Any = parse_value(raw)
    for part in reversed(parts):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested
