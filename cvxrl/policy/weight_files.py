"""Weight files of a directory by their headers alone: which tensors they hold, and whether they are whole."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError, safe_open

from cvxrl.errors import Mistakes, Problem, UserError

_INDEX = "model.safetensors.index.json"


def stored_shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Name and shape of every tensor in a safetensors file.

    Raises:
        UserError: the file is missing, empty, cut off or something else.
    """
    try:
        with safe_open(file, framework="numpy") as tensors:
            yield from ((name, tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        size = file.stat().st_size if file.is_file() else 0
        reason = "is empty" if file.is_file() and not size else f"is cut off or no safetensors file: {error}"
        what = f"the weight file {reason} ({size:,} bytes)"
        raise UserError(Problem(what, "model.path", str(file), "copy or download it again")) from error


def check_weight_files(directory: Path) -> None:
    """Look at the header of every weight file of a Hugging Face directory.

    Raises:
        UserError: one is damaged, or its index names a file that is not there; all of them are told.
    """
    mistakes = Mistakes()
    for file in sorted(directory.glob("*.safetensors")):
        mistakes.attempt(lambda whole=file: list(stored_shapes(whole)))
    index, missing = directory / _INDEX, missing_files(directory)
    if missing:
        what = f"names {len(missing)} weight files that are not there, e.g. {missing[0]}"
        mistakes.problems.append(Problem(what, "model.path", str(index), "copy or download them too"))
    if mistakes.problems:
        raise UserError(*mistakes.problems)


def missing_files(directory: Path) -> list[str]:
    """Weight files that a directory's index names and that are not there.

    Raises:
        UserError: the index is damaged.
    """
    index = directory / _INDEX
    if not index.is_file():
        return []
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(Problem("is no index of weight files", "model.path", str(index), "copy it again")) from None
    return [name for name in named if not (directory / name).is_file()]
