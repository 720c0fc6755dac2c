"""Read YAML strictly: as YAML 1.2 reads it, with merge keys, without duplicate keys, objects or circles."""

from __future__ import annotations

import re
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from cvxrl.errors import Problem, UserError

_MERGE = "tag:yaml.org,2002:merge"

# A short text can stand for a billion values through aliases of aliases; no recipe comes near this.
_MOST_VALUES = 100_000


class _Schema(yaml.constructor.SafeConstructor):
    """Core schema of YAML 1.2 in place of version 1.1's readings.

    In 1.1, 010 is 8, 1:30 is 90, `on` is true, 2024-05-01 is a date, and 1e-4 is text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == _MERGE:
                continue  # what it brings lies below the mapping's own keys
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key `{key}`", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """Whole number: decimal whatever zeros it starts with, 0o octal, 0x hexadecimal."""
    text = loader.construct_scalar(node)
    return int(text, 0) if text[:2] in ("0o", "0x") else int(text)


class _Loader(_Schema, yaml.SafeLoader):
    """Safe loader that says what is wrong in the words of this package's messages."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (PyYAML's own way)


class _FastLoader(_Schema, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """The same by libyaml, where PyYAML was built with it: eight times as fast."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    """Safe dumper that quotes text which either version of YAML would read as something else."""


class _FastDumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """The same by libyaml; characters beyond the 65 536 first ones are spelt out."""


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?\d+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.\d+|\d+\.\d*)([eE][-+]?\d+)?|[-+]?\d+[eE][-+]?\d+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", "<<", ["<"]),
):
    for _class in (_Loader, _FastLoader, _Dumper, _FastDumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)
for _class in (_Loader, _FastLoader):
    _class.add_constructor("tag:yaml.org,2002:int", _integer)


def parse_value(text: str) -> Any:
    """Value of a `--set key=value`, read as YAML.

    Raises:
        ValueError: the text is not YAML.
    """
    try:
        return _load(text)
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ValueError(_reason(error)) from None


def write_mapping(values: dict[str, Any]) -> str:
    """YAML text of a mapping, in its order; `read_mapping` of it gives the same values."""
    try:
        return _block(values, _FastDumper)
    except UnicodeEncodeError:  # half of a surrogate pair, which libyaml cannot spell out
        return _block(values, _Dumper)


def write_value(value: Any) -> str:
    """A value on one line, which `parse_value` reads back, as in `--set key=value`."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def read_mapping(path: Path) -> dict[str, Any]:
    """Top-level mapping of a YAML file.

    Raises:
        UserError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(Problem("no such file", file=str(path), remedy="check the path")) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(Problem(f"cannot read: {reason}", file=str(path), remedy="give a YAML text file")) from None
    try:
        value = _load(text)
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:
        raise UserError(Problem(_reason(error), file=str(path), remedy="mend the YAML")) from None
    if not isinstance(value, dict):
        raise UserError(Problem("not a mapping of keys to values", file=str(path), remedy="start with `name: ...`"))
    odd = [key for key in value if not isinstance(key, str)]
    if odd:
        raise UserError(Problem(f"key {odd[0]!r} is not text", file=str(path), remedy="quote the key"))
    return value


def _load(text: str) -> Any:
    return deepcopy(_parsed(text))


@lru_cache(maxsize=1024)
def _parsed(text: str) -> Any:
    """Parsing takes milliseconds a recipe, and a study reads the same ones for each of its hundreds of runs."""
    try:
        value = yaml.load(text, Loader=_FastLoader)
    except (yaml.YAMLError, RecursionError, TypeError, ValueError):
        value = yaml.load(text, Loader=_Loader)  # which finds the same mistake, and has the better words for it
    _check_size(value)
    return value


def _check_size(value: Any) -> None:
    """Raise ValueError where aliases make a value part of itself, or of more than any recipe holds."""
    count = 0
    open_ids: set[int] = set()

    def visit(part: Any) -> None:
        nonlocal count
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(f"more than {_MOST_VALUES:,} values, counting what aliases stand for")
        if not isinstance(part, dict | list):
            return
        if id(part) in open_ids:
            raise ValueError("an alias (*) stands inside the value that it names")
        open_ids.add(id(part))
        for inner in part.values() if isinstance(part, dict) else part:
            visit(inner)
        open_ids.remove(id(part))

    visit(value)


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem or error.context}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _block(values: dict[str, Any], dumper: type[yaml.SafeDumper]) -> str:
    text: str = yaml.dump(values, Dumper=dumper, sort_keys=False, allow_unicode=True, width=100)
    return text
