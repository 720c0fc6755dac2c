"""What a recipe file leaves to be understood: the `kind` of a section given by name, the folder of a relative path."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from cvxrl.errors import Problem
from cvxrl.recipe.base import kind_of, section_classes
from cvxrl.recipe.shipped import recipes_folder

# Mark of a field that may name a local file or folder, as in `Annotated[str, PATH]`.
PATH: Final = "relative to the file that says it"

_RUN_RECORD = "run.json"

# A Hub id is `name` or `owner/name`; these can only be meant as paths.
_PATH_SHAPE = re.compile(r"\.{1,2}(/.*)?|[^/]*/[^/]+/.*|.*/|.*\.(jsonl?|csv|tsv|parquet|txt|gguf|safetensors)")
# Neither is these: `package:NAME/DIR`, a URL, an absolute path, one from the home folder.
_ANCHORED = re.compile(r"[A-Za-z][\w+.-]*:.*|/.*|~.*")

Change = Callable[[str, Any, Sequence[FieldInfo]], Any]


def spell_out(values: Mapping[str, Any], root: type[BaseModel]) -> dict[str, Any]:
    """Values with `section: name` written as `section: {kind: name}` wherever ``root`` has sections of several kinds.

    Elements of lists of sections too, as in `logging.sinks: [csv]`, and a name alone where a list is due. Text that
    names no kind is spelled out all the same, so that the mistake is told as that of a kind.
    """

    def spell(_key: str, value: Any, fields: Sequence[FieldInfo]) -> Any:
        if not isinstance(value, str | list):
            return value
        if not any(kind_of(c) for field in fields for c in section_classes(field.annotation)):
            return value
        if isinstance(value, list):
            return [{"kind": element} if isinstance(element, str) else element for element in value]
        takes_text = any(_admits(field.annotation, value) for field in fields)
        if not isinstance(value, str) or takes_text:
            return value
        listed = any(get_origin(field.annotation) is tuple for field in fields)
        return [{"kind": value}] if listed else {"kind": value}

    return map_fields(values, [root], spell)


def anchor_paths(values: Mapping[str, Any], root: type[BaseModel], file: Path) -> tuple[dict[str, Any], list[Problem]]:
    """Values of a file with their relative paths as seen from the working folder.

    A path starts at the folder of the file that says it; a symbolic link stands for the file that it leads to. Recipes
    of the package name outputs of one another, and the recipe that a run keeps has been through this: in both, paths
    start at the working folder.

    Args:
        values: contents of ``file``.
        root: what the file is checked as.
        file: a recipe.

    Returns:
        The values, and a problem for each path that is to be found from the working folder alone.
    """
    folder = Path(os.path.relpath(file.resolve().parent))
    problems: list[Problem] = []
    if folder == Path() or (file.parent / _RUN_RECORD).is_file() or file.resolve() in _shipped():
        return dict(values), []

    def anchor(key: str, value: Any, fields: Sequence[FieldInfo]) -> Any:
        marked = any(PATH in field.metadata for field in fields)
        if not marked or not isinstance(value, str) or not value or _ANCHORED.fullmatch(value):
            return value
        beside = folder / value
        if not beside.exists() and Path(value).exists():
            remedy = f"paths start at the folder of the file: write {os.path.relpath(value, folder)}"
            problems.append(Problem(f"there is no {beside}, though there is {value}", key, str(file), remedy))
        return str(beside) if beside.exists() or _PATH_SHAPE.fullmatch(value) else value

    return map_fields(values, [root], anchor), problems


def map_fields(
    values: Mapping[str, Any], classes: Sequence[type[BaseModel]], change: Change, prefix: str = ""
) -> dict[str, Any]:
    """Apply ``change`` to every value that one of the classes has a field for, and then to what is inside it."""
    changed: dict[str, Any] = {}
    for key, value in values.items():
        fields, inner = _fields(tuple(classes), key)
        value = change(f"{prefix}{key}", value, fields) if fields else value
        into = isinstance(value, Mapping) and inner
        changed[key] = map_fields(value, inner, change, f"{prefix}{key}.") if into else value
    return changed


@cache
def _fields(classes: tuple[type[BaseModel], ...], key: str) -> tuple[list[FieldInfo], list[type[BaseModel]]]:
    """Fields of a name, and the sections that they admit: asked for thousands of times where recipes are many."""
    fields = [c.model_fields[key] for c in classes if key in c.model_fields]
    return fields, [c for field in fields for c in section_classes(field.annotation)]


@cache
def _shipped() -> frozenset[Path]:
    return frozenset(shipped.resolve() for shipped in recipes_folder().rglob("*.yaml"))


def _admits(annotation: Any, text: Any) -> bool:
    """Whether a text is a value of its own there: any text, or one of the choices of a `Literal`."""
    if get_origin(annotation) is Literal:
        return text in get_args(annotation)
    return annotation is str or any(_admits(argument, text) for argument in get_args(annotation))
