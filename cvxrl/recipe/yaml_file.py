"""Read YAML strictly: no duplicate keys, no objects, and 1e-4 is a number."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from cvxrl.errors import Problem, UserError


class _Loader(yaml.SafeLoader):
    """Safe loader that refuses duplicate keys and reads floats as YAML 1.2 does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key `{key}`", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


# YAML 1.1 wants a dot in every float, so it reads 1e-4 as text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d+\.\d*|\.\d+|\d+)([eE][-+]?\d+)$|^[-+]?(\d+\.\d*|\.\d+)$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def parse_value(text: str) -> Any:
    """Value of a `--set key=value`, read as YAML.

    Raises:
        ValueError: the text is not YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, TypeError) as error:
        raise ValueError(_reason(error)) from None


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
        value = yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, RecursionError, TypeError, ValueError) as error:
        raise UserError(Problem(_reason(error), file=str(path), remedy="mend the YAML")) from None
    if not isinstance(value, dict):
        raise UserError(Problem("not a mapping of keys to values", file=str(path), remedy="start with `name: ...`"))
    odd = [key for key in value if not isinstance(key, str)]
    if odd:
        raise UserError(Problem(f"key {odd[0]!r} is not text", file=str(path), remedy="quote the key"))
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem or error.context}"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    return str(error).splitlines()[0] if str(error) else type(error).__name__
