"""Plain settings of a pickled object, read without running anything that the file names."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

_PLAIN = (int, float, str, bool, type(None))


class _Inert:
    """Stands for every class and function that a file names, and does nothing whatever is asked of it.

    A member of an enumeration is pickled as a call of its class with its value, so what it is called with is kept.
    """

    called: tuple[Any, ...] = ()

    def __new__(cls, *arguments: Any, **_: Any) -> _Inert:
        made = super().__new__(cls)
        made.called = arguments
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take anything."""

    def __setitem__(self, *_: Any) -> None:
        """Be filled like a mapping."""

    def append(self, *_: Any) -> None:
        """Be filled like a list."""


class _Reader(pickle.Unpickler):
    """Unpickles with `_Inert` for all names, so that no code is imported and none is called."""

    def find_class(self, *_: str) -> type[_Inert]:
        return _Inert

    def persistent_load(self, *_: Any) -> None:
        return None


def plain_settings(file: Path, wanted: Collection[str]) -> dict[str, Any]:
    """Numbers, texts, constants, and lists and mappings of them, among the attributes of what `torch.save` wrote.

    Unpickling would run whatever the file names, so that a file that was got from somewhere else could not be asked for
    its seed.

    Args:
        file: a zip archive with a `data.pkl`, as `torch.save` writes it.
        wanted: the attributes; those that are not there or not plain are left out.

    Raises:
        ValueError: it is no such file.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            (name,) = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            found = vars(_Reader(io.BytesIO(archive.read(name))).load())
    except (OSError, zipfile.BadZipFile) as error:
        raise ValueError(str(error)) from None
    except (pickle.UnpicklingError, EOFError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise ValueError(f"no pickled object with attributes: {error}") from None
    plain = ((key, _as_plain(found[key])) for key in wanted if key in found)
    return {key: value for key, value in plain if not isinstance(value, _Inert)}


def _as_plain(value: Any) -> Any:
    """The value, a member of an enumeration as its own value; an `_Inert` where it is or holds anything else."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, _Inert):
        is_member = len(value.called) == 1 and isinstance(value.called[0], str)
        return value.called[0] if is_member else value
    if isinstance(value, list | tuple):
        parts = [_as_plain(part) for part in value]
        return next((part for part in parts if isinstance(part, _Inert)), parts)
    if isinstance(value, dict):
        entries = {key: _as_plain(part) for key, part in value.items() if isinstance(key, str)}
        return next((part for part in entries.values() if isinstance(part, _Inert)), entries)
    return _Inert()
