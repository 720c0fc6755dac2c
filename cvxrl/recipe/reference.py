"""docs/recipe.md from the schema: `python -m cvxrl.recipe.reference > docs/recipe.md`."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from cvxrl.recipe.base import kind_of, section_classes
from cvxrl.recipe.digest import amendable_keys, is_in, neutral_keys
from cvxrl.recipe.schema import Recipe

_HEAD = """# Recipe reference

Generated from the schema by `python -m cvxrl.recipe.reference > docs/recipe.md`; a test keeps it current.

A recipe is a YAML mapping. `extends: other.yaml` (or a list) lays it over other recipes: a path relative to its own, or
the bare name of one that comes with the package, such as `math_grpo`. Mappings merge key by key, anything else
replaces, and a section whose `kind` changes replaces the inherited one whole.
`--set section.key=value` is laid over the file. Unknown keys are errors.

Files are read as YAML 1.2, merge keys (`<<`) included: 010 is ten, `yes` is text, and a quoted number is no number.
`objective: lco-kld` is short for `objective: {kind: lco-kld}`, in every section that has kinds. A relative path of a
file, folder or policy starts at the folder of the recipe that says it, and one given by `--set`, by a recipe of the
package or by the `recipe.yaml` that a run keeps starts at the working folder.

A field marked ° cannot change a result: it says what is saved, logged or shown. Such fields are no part of the recipe's
digest; `--resume` accepts other values of them, and `compare` pools runs that differ in them.

A field marked + can be changed by `--resume` too, from the next step on, since the steps that are done stay as they
are: `--resume --set train.steps=120` makes a run of 100 steps the run of 120 (docs/run_directory.md). It is part of
the digest.
"""


def reference() -> str:
    """Whole page."""
    return _HEAD + "".join(_section(Recipe, "recipe", "")).rstrip() + "\n"


def _section(section: type[BaseModel], title: str, prefix: str) -> Iterator[str]:
    """Heading, docstring and table of a section, then the sections inside it."""
    yield f"\n## {title}\n\n{_first_paragraph(section)}\n\n"
    yield "| key | type | default | meaning |\n|---|---|---|---|\n"
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        mark = " °" if is_in(key, neutral_keys()) else " +" if is_in(key, amendable_keys()) else ""
        cells = (f"`{key}`{mark}", _type(field.annotation), _default(field), field.description or "")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"
    for name, field in section.model_fields.items():
        for inner in section_classes(field.annotation):
            tag = kind_of(inner)
            label = f"{prefix}{name}" + (f": {tag}" if tag else "")
            yield from _section(inner, label, f"{prefix}{name}.")


def _first_paragraph(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split("\n\n")[0].split())


def _default(field: FieldInfo) -> str:
    if field.default_factory is not None:
        return "empty"
    if field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        tag = kind_of(type(field.default))
        return f"`{tag}`" if tag else "as below"
    value = list(field.default) if isinstance(field.default, tuple | frozenset) else field.default
    return "none" if value is None else f"`{json.dumps(value)}`"


def _type(annotation: Any) -> str:
    """Short name of a type in the user's words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return " or ".join(f"`{a}`" for a in arguments)
    if origin in (Union, types.UnionType):
        if all(isinstance(a, type) and issubclass(a, BaseModel) for a in arguments):
            return "section, by `kind`"
        return " or ".join("none" if a is type(None) else _type(a) for a in arguments)
    if origin is tuple and any(section_classes(annotation)):
        return "list of sections, by `kind`"
    if origin is tuple:
        return "list" if Ellipsis in arguments else f"list of {len(arguments)}"
    if origin in (dict, list, frozenset):
        return "mapping" if origin is dict else "list"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "section"
    names = {int: "integer", float: "number", str: "text", bool: "true or false"}
    return names.get(annotation, str(annotation))


if __name__ == "__main__":
    sys.stdout.write(reference())
