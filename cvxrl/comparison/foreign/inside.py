"""`FILE#NAME`: one of the runs that a file holds, as a path that messages can show and users can give."""

from __future__ import annotations

from pathlib import Path

_MARK = "#"


def inner_path(file: Path, name: str) -> Path:
    """The path of a run in a file; a slash in its name would look like a folder, so it is written otherwise."""
    return file.with_name(f"{file.name}{_MARK}{name.replace('/', '∕')}")


def file_of(path: Path) -> Path:
    """The file that a path names, or that the run it names is in."""
    return _parts(path)[0]


def inner_name(path: Path) -> str | None:
    """Name of the run in its file; None of a file."""
    return _parts(path)[1]


def _parts(path: Path) -> tuple[Path, str | None]:
    """File and run: both may have the mark in their names, so it is the longest file that exists."""
    if path.exists() or _MARK not in path.name:
        return path, None
    ways = [(path.name[:at], path.name[at + 1 :]) for at, letter in enumerate(path.name) if letter == _MARK]
    there = [way for way in ways if way[0] and path.with_name(way[0]).is_file()]
    file, name = there[-1] if there else ways[0]
    return path.with_name(file) if file else path, name.replace("∕", "/")
