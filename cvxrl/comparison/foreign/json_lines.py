"""Logs of one JSON object a line: verl's `{"step", "data"}`, and the flat ones of prime-rl, tinker and others."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cvxrl.comparison.foreign.log import Log, Row, refuse
from cvxrl.comparison.foreign.names import PRIME_RL, TINKER, TRL, VERL, Alias

_FLAT = "metrics.jsonl"
_FIRST = 1 << 20  # bytes in which the first line must end
_CLOCKS = ("step", "time", "timestamp", "epoch")
# Files that only our own run directories have beside a metrics.jsonl.
_OURS = ("run.json", "recipe.yaml", ".lock")


def owns(path: Path) -> bool:
    """Whether this is such a log, or a folder with one that is no run directory of ours."""
    if path.is_dir():
        return is_foreign_folder(path)
    return path.suffix == ".jsonl" and _kind(_first(path)) is not None


def is_foreign_folder(folder: Path) -> bool:
    """Whether its metrics.jsonl was written by another program."""
    if any((folder / name).exists() for name in _OURS) or not (folder / _FLAT).is_file():
        return False
    kind = _kind(_first(folder / _FLAT))
    return kind not in (None, "JSON lines") or (folder / "config.json").is_file()


def read(path: Path) -> Log:
    """Read a log of one run.

    Raises:
        UserError: a line is damaged, or lines of two kinds are mixed; one problem per file.
    """
    file = path / _FLAT if path.is_dir() else path
    kind = _kind(_first(file)) or "JSON lines"
    config = _config(file.parent / "config.json") if file.name == _FLAT else {}
    name = file.absolute().parent.name if file.name == _FLAT else file.stem
    aliases: dict[str, tuple[Alias, ...]] = {"verl": VERL, "prime-rl": PRIME_RL, "tinker": TINKER}
    return Log(
        path=path,
        name=name,
        program=kind,
        rows=list(_rows(file, nested=kind == "verl")),
        aliases=aliases.get(kind, (*TRL, *VERL, *PRIME_RL, *TINKER)),
        seed=seed_of(config),
        settings={key: value for key, value in config.items() if key == "learning_rate"} or None,
    )


def seed_of(config: Mapping[str, Any]) -> int | None:
    """The seed that a configuration names at its top, if it does."""
    seed = config.get("seed")
    return seed if isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 else None


def _kind(first: Any) -> str | None:
    """Which program writes lines like this one; None where it is no line of a log."""
    if not isinstance(first, Mapping) or not _is_number(first.get("step")):
        return None
    if isinstance(first.get("data"), Mapping):
        return "verl"
    if any(key.startswith("progress/") or "env/all/" in key for key in first):
        return "tinker"
    if "time" in first:
        return "prime-rl"
    return "JSON lines" if any(_is_number(v) for k, v in first.items() if k not in _CLOCKS) else None


def _first(file: Path) -> Any:
    try:
        with file.open("rb") as stream:
            return json.loads(stream.readline(_FIRST))
    except (OSError, ValueError):
        return None


def _rows(file: Path, *, nested: bool) -> Iterator[Row]:
    """Rows of a file; a torn last line is left out, as of a program that was killed."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        refuse(file, f"cannot be read: {error}")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except ValueError:
            if number == len(lines):
                return
            refuse(file, f"line {number} is damaged")
        if not isinstance(found, Mapping) or not _is_number(found.get("step")):
            refuse(file, f"line {number} has no step")
        if nested is not isinstance(found.get("data"), Mapping):
            refuse(file, f"line {number} is of another program than the first", "split it, one file per run")
        values = found["data"] if nested else found
        yield float(found["step"]), {key: value for key, value in values.items() if key not in _CLOCKS}


def _config(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
