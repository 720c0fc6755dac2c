"""`FILE#NAME`: one of the runs that a file holds, as a path that messages can show and users can give."""

from __future__ import annotations

from pathlib import Path

_MARK = "#"


def inner_path(file: Path, name: str) -> Path:
    """The path of a run in a file; a slash in its name would look like a folder, so it is written otherwise."""
    return file.with_name(f"{file.name}{_MARK}{name.replace('/', '∕')}")


def file_of(path: Path) -> Path:
    """The file that a path names, or that the run it names is in."""
    return path if path.exists() or _MARK not in path.name else path.with_name(path.name.partition(_MARK)[0])


def inner_name(path: Path) -> str | None:
    """Name of the run in its file; None of a file."""
    if path.exists() or _MARK not in path.name:
        return None
    return path.name.partition(_MARK)[2].replace("∕", "/")
