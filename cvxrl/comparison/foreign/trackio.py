"""Runs in a project's database of trackio: SQLite, with the metrics of a step as JSON."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from cvxrl.comparison.foreign.inside import file_of, inner_name, inner_path
from cvxrl.comparison.foreign.json_lines import seed_of
from cvxrl.comparison.foreign.log import Log, Row, refuse
from cvxrl.comparison.foreign.names import PRIME_RL, TINKER, TRL, VERL

_MAGIC = b"SQLite format 3\x00"
_NEEDED = {"run_name", "step", "metrics"}


def owns(path: Path) -> bool:
    """Whether it is a SQLite database with trackio's table of metrics, or one of its runs."""
    file = file_of(path)
    try:
        with file.open("rb") as stream:
            if file.suffix != ".db" or stream.read(len(_MAGIC)) != _MAGIC:
                return False
        return _NEEDED.issubset(_columns(file, "metrics"))
    except (OSError, sqlite3.Error):
        return file.suffix == ".db" and file.is_file()  # damaged, and not to be passed over in silence


def inside(path: Path) -> list[Path]:
    """Its runs by name; those of one name by their id."""
    try:
        found = _runs(path)
    except sqlite3.Error:
        return [path]
    names = [name for name, _ in found]
    return [inner_path(path, name if names.count(name) == 1 else f"{name}@{key}") for name, key in found] or [path]


def read(path: Path) -> Log:
    """Read a run of a database.

    Raises:
        UserError: the database is damaged, or has no such run.
    """
    file, name = file_of(path), inner_name(path)
    try:
        runs = {label: key for label, key in zip(map(inner_name, inside(file)), _runs(file), strict=True)}
        if name is None or name not in runs:
            known = ", ".join(f"{file.name}#{label}" for label in runs) or "none"
            refuse(
                file,
                "does not say which of its runs is meant" if name is None else f"has no run `{name}`",
                f"there are: {known}",
            )
        called, key = runs[name]
        config = _config(file, key)
        rows = list(_rows(file, key))
    except sqlite3.Error as error:
        refuse(file, f"is damaged: {error}")
    aliases = (*TRL, *VERL, *PRIME_RL, *TINKER)
    # Runs that we wrote ourselves carry their recipe, and with it their name.
    return Log(path, called, "trackio", rows, aliases, seed=seed_of(config))


def _connect(file: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)


def _columns(file: Path, table: str) -> list[str]:
    with closing(_connect(file)) as database:
        return [row[1] for row in database.execute(f"PRAGMA table_info({table})")]


def _id_column(file: Path) -> str:
    """Older databases know a run by its name alone."""
    return "run_id" if "run_id" in _columns(file, "metrics") else "run_name"


def _runs(file: Path) -> list[tuple[str, str]]:
    """Name and id of each run, in the order of their first metrics."""
    column = _id_column(file)
    with closing(_connect(file)) as database:
        query = f"SELECT run_name, {column} FROM metrics GROUP BY {column} ORDER BY MIN(rowid)"
        return [(str(name), str(key)) for name, key in database.execute(query)]


def _rows(file: Path, key: str) -> Iterator[Row]:
    with closing(_connect(file)) as database:
        query = f"SELECT step, metrics FROM metrics WHERE {_id_column(file)} = ? ORDER BY rowid"
        for number, (step, text) in enumerate(database.execute(query, (key,)), start=1):
            values = _json(text)
            if step is None or not isinstance(values, dict):
                refuse(file, f"row {number} of run `{key}` is damaged")
            yield float(step), values


def _config(file: Path, key: str) -> dict[str, Any]:
    columns = _columns(file, "configs")
    if "config" not in columns:
        return {}
    column = "run_id" if "run_id" in columns else "run_name"
    with closing(_connect(file)) as database:
        row = database.execute(f"SELECT config FROM configs WHERE {column} = ?", (key,)).fetchone()
    found = _json(row[0]) if row else None
    return found if isinstance(found, dict) else {}


def _json(text: Any) -> Any:
    try:
        return json.loads(text)
    except (TypeError, ValueError):
        return None
