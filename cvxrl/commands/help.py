"""Help of a command: what every command's help has, and what stands below the options that Typer prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from textwrap import shorten
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

_WIDTH = 80

# In every command, below its group's own `--help`.
SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    """A command whose flags carry no type, since they take no value, and whose help ends with examples.

    Attributes:
        examples: command lines, each with what it does.
    """

    examples: ClassVar[Mapping[str, str]] = {}

    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters of the command and its help option, flags without a type."""
        return _untyped_flags(super().get_params(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help, then what `more` gives, then the examples."""
        super().format_help(ctx, formatter)
        for line in (*self.more(), *self._examples()):
            typer.echo(line)

    def more(self) -> Iterator[str]:
        """Lines between the options and the examples; none here."""
        yield from ()

    def _examples(self) -> Iterator[str]:
        if self.examples:
            yield " Examples"
            for line, meaning in self.examples.items():
                yield f"   # {meaning}"
                yield f"   {line}"
            yield ""


class Group(TyperGroup):
    """The application, whose own flags carry no type either."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Parameters of the application, flags without a type."""
        return _untyped_flags(super().get_params(ctx))


def section(title: str, entries: Mapping[str, str]) -> Iterator[str]:
    """A title, a line per entry with its description cut to the width, and an empty line."""
    yield f" {title}"
    column = max(map(len, entries), default=0)
    for name, text in entries.items():
        yield f"   {name:{column}}  {shorten(text, _WIDTH - column - 5, placeholder=' ...')}"
    yield ""


def _untyped_flags(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if isinstance(parameter, TyperOption) and parameter.is_flag:
            parameter.metavar = ""
    return parameters
