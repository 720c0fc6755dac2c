"""Options written once: a command takes dataclasses, and their annotated fields are its command-line options."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from typer.models import ParameterInfo

from cvxrl.errors import Mistakes, Problem, UserError


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer wants it: every parameter that is a dataclass is replaced by the options of its fields.

    A field `Annotated[T, typer.Option(...)] = default` becomes an option; a field without a `typer.Option` or
    `typer.Argument` keeps its default and can be set from Python only. With `typer.Option(parser=f)` the option is a
    text (a path, where the field is one), and f is called with it, or with each of a list, once Typer has read the
    whole command line: so the mistakes (`UserError`) of several options are told together. Parameters that are no
    dataclass stay what they are.

    Args:
        command: a function whose annotations can be resolved when this is called.
    """
    hints = get_type_hints(command, include_extras=True)
    taken = {name: _options_of(name, hints[name], p) for name, p in signature(command).parameters.items()}
    flat = [option for options in taken.values() for option in options]

    def run(**given: Any) -> None:
        mistakes = Mistakes()
        values = {option.name: mistakes.attempt(option.value, given[option.name]) for option in flat}
        if mistakes.problems:
            raise UserError(*mistakes.problems)
        command(**{name: _argument(hints[name], options, values) for name, options in taken.items()})

    run.__name__, run.__doc__, run.__module__ = command.__name__, command.__doc__, command.__module__
    shown = [option.shown for option in flat]
    run.__signature__ = Signature(shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


def writable_file(file: Path) -> Path:
    """Parser of a file to be written, so that one that cannot be is found before hours of work rather than after.

    Raises:
        UserError: it is a folder, or its folder cannot be written or made.
    """
    if not file.is_dir() and _can_write_beside(file):
        return file
    raise UserError(Problem("cannot write this file", file=str(file), remedy="give a file in a folder of yours"))


def writable_folder(folder: Path) -> Path:
    """Parser of a folder that gets new files; it need not exist yet.

    Raises:
        UserError: it is a file, or cannot be written or made.
    """
    if _can_write_beside(folder / "a file"):
        return folder
    raise UserError(Problem("cannot write into this folder", file=str(folder), remedy="give a folder of yours"))


@dataclass(frozen=True)
class _Option:
    """One option as the command line has it.

    Attributes:
        shown: parameter that Typer sees.
        parse: from what Typer gives to the field's value.
        many: whether ``parse`` takes the elements of a list.
    """

    shown: Parameter
    parse: Callable[[Any], Any] | None = None
    many: bool = False

    @property
    def name(self) -> str:
        return self.shown.name

    def value(self, given: Any) -> Any:
        if self.parse is None or given is None:
            return given
        if not self.many:
            return self.parse(given)
        mistakes = Mistakes()
        values = [mistakes.attempt(self.parse, one) for one in given]
        if mistakes.problems:
            raise UserError(*mistakes.problems)
        return values


def _options_of(name: str, hint: Any, parameter: Parameter) -> list[_Option]:
    """Options of a parameter: itself, or the annotated fields of a dataclass."""
    if not is_dataclass(hint):
        return [_option(name, hint, parameter.default)]
    hints = get_type_hints(hint, include_extras=True)
    return [_option(f.name, hints[f.name], _default(f)) for f in fields(hint) if _info(hints[f.name]) is not None]


def _option(name: str, hint: Any, default: Any) -> _Option:
    info = _info(hint)
    if info is None or info.parser is None:
        return _Option(Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=hint))
    kind = get_args(hint)[0]
    kinds = (kind, *get_args(kind))
    many = any(get_origin(each) is list for each in kinds)
    parse, unparsed = info.parser, copy(info)
    unparsed.parser = None
    text: Any = Path if Path in kinds else str
    given: Any = list[text] if many else text
    shown = Annotated[given | None, unparsed]
    written = f"{default:g}" if isinstance(default, float) else default
    return _Option(Parameter(name, Parameter.KEYWORD_ONLY, default=written, annotation=shown), parse, many)


def _info(hint: Any) -> ParameterInfo | None:
    """What the annotation says to Typer."""
    extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    return next((extra for extra in extras if isinstance(extra, ParameterInfo)), None)


def _default(field: Field[Any]) -> Any:
    """Default that Typer is told; None stands for one that the dataclass makes itself."""
    if field.default_factory is not MISSING:
        return None
    return Parameter.empty if field.default is MISSING else field.default


def _argument(hint: Any, options: list[_Option], values: Mapping[str, Any]) -> Any:
    """What the command gets for one of its parameters."""
    if not is_dataclass(hint):
        return values[options[0].name]
    made = {f.name for f in fields(hint) if f.default_factory is not MISSING}
    kept = {o.name: values[o.name] for o in options if not (o.name in made and values[o.name] is None)}
    return hint(**kept)  # type: ignore[operator]


def _can_write_beside(file: Path) -> bool:
    """Whether the folder of a file, or the nearest above it that exists, may be written."""
    nearest = next(p for p in file.absolute().parents if p.exists())
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)
