"""Options written once: a command's signature made of dataclasses."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner, Result

from cvxrl.commands.options import with_options, writable_file, writable_folder
from cvxrl.errors import Problem, UserError


def numbers(text: str) -> tuple[int, ...]:
    if not text.replace(",", "").isdigit():
        raise UserError(Problem(f"`{text}` is no list of numbers", "--numbers"))
    return tuple(map(int, text.split(",")))


def share(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise UserError(Problem(f"`{text}` is no share", "--shares"))
    return float(text)


@dataclass(frozen=True)
class Work:
    path: Annotated[Path, typer.Argument(help="What to work on.")]
    sets: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Repeatable.")] = field(
        default_factory=list
    )
    level: Annotated[float, typer.Option(parser=share, help="How high.")] = 0.0
    numbers: Annotated[tuple[int, ...] | None, typer.Option(parser=numbers, metavar="1,2", help="Some.")] = None
    shares: Annotated[list[float] | None, typer.Option(parser=share, help="Each of them.")] = None
    hidden: int = 7


@with_options
def command(
    work: Work,
    other: Annotated[int | None, typer.Option(min=1, help="Something else.")] = None,
    dry: Annotated[bool, typer.Option("--dry-run", help="Stop before.")] = False,
) -> None:
    """Do it."""
    print(work, other, dry)


def invoke(*arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(command)
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "150", "NO_COLOR": "1"})


def test_defaults_and_fields_that_are_no_options() -> None:
    expected = Work(Path("a"))
    assert invoke("a").stdout == f"{expected} None False\n"
    assert expected.hidden == 7 and expected.level == 0.0


def test_values_are_parsed_into_the_types_of_the_fields() -> None:
    done = invoke(
        "a", "--set", "x=1", "--set", "y=2", "--numbers", "3,4", "--shares", "1", "--shares", "0.5", "--dry-run"
    )
    assert done.stdout == f"{Work(Path('a'), ['x=1', 'y=2'], 0.0, (3, 4), [1.0, 0.5])} None True\n"


def test_mistakes_of_several_options_are_told_together() -> None:
    done = invoke("a", "--numbers", "x", "--shares", "2", "--shares", "0", "--shares", "3")
    assert isinstance(done.exception, UserError)
    assert [p.message[:3] for p in done.exception.problems] == ["`x`", "`2`", "`3`"]


def test_what_typer_checks_itself_is_left_to_it() -> None:
    assert "Missing argument" in invoke().output
    refused = invoke("a", "--other", "0")
    assert refused.exit_code == 2 and "--other" in refused.output and not isinstance(refused.exception, UserError)


def test_help_says_what_the_fields_say() -> None:
    shown = invoke("--help").stdout
    for words in ("Do it.", "What to work on.", "KEY=VALUE", "Repeatable.", "[default: 0]", "1,2", "--dry-run"):
        assert words in shown
    assert "hidden" not in shown and "parser" not in shown.lower()


def test_files_that_cannot_be_written_are_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert writable_file(tmp_path / "new" / "a.csv") == tmp_path / "new" / "a.csv"
    assert writable_folder(tmp_path / "new") == tmp_path / "new"
    for parser, path in (
        (writable_file, tmp_path),
        (writable_file, tmp_path / "file" / "a"),
        (writable_folder, tmp_path / "file"),
    ):
        with pytest.raises(UserError, match="cannot write"):
            parser(path)
