"""Options of the command line that are small languages of their own, parsed all at once."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cvxrl.compare.gate import Gate, parse_gate
from cvxrl.errors import Problem, UserError

DivergedAs = float | Literal["last", "omit"]

_MOST_SEEDS = 1000  # more is a typing mistake
_SEED_PART = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


@dataclass(frozen=True)
class Arguments:
    """Parsed options.

    Attributes:
        seeds: training seeds, or None.
        gates: parsed requirements.
        diverged_as: score of a diverged run.
    """

    seeds: tuple[int, ...] | None
    gates: list[Gate]
    diverged_as: DivergedAs


def parse_arguments(
    seeds: str | None, require: Sequence[str], diverged_as: str, files: Sequence[Path], folders: Sequence[Path] = ()
) -> Arguments:
    """Parse what can be wrong before anything is read or trained; ``files`` and ``folders`` are to be written.

    Raises:
        UserError: with one problem per mistake.
    """
    problems: list[Problem] = []
    gates = []
    for text in require:
        try:
            gates.append(parse_gate(text))
        except UserError as error:
            problems += error.problems
    parsed_seeds = None
    if seeds is not None:
        try:
            parsed_seeds = parse_seeds(seeds)
        except ValueError as error:
            problems.append(Problem(str(error), "--seeds", remedy="write e.g. 0-4, or 0,1,5-7"))
    after: DivergedAs = 0.0
    try:
        after = parse_diverged_as(diverged_as)
    except ValueError:
        text = f"`{diverged_as}` is neither a number nor last or omit"
        problems.append(Problem(text, "--diverged-as", remedy="write 0, last or omit"))
    problems += [problem for file in files if (problem := _cannot_write(file))]
    problems += [problem for folder in folders if (problem := _cannot_write(folder / "a figure", str(folder)))]
    if problems:
        raise UserError(*problems)
    return Arguments(parsed_seeds, gates, after)


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0-4`, `0,2` or `0-2,7` as increasing seeds, each once.

    Raises:
        ValueError: it is written otherwise, runs backwards, or names more than a thousand.
    """
    seeds: set[int] = set()
    for part in text.split(","):
        found = _SEED_PART.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"`{text}` is not a list of seeds")
        first, last = int(found[1]), int(found[2] or found[1])
        if last < first:
            raise ValueError(f"`{part.strip()}` runs backwards")
        if last - first >= _MOST_SEEDS:
            raise ValueError(f"`{part.strip()}` names more than {_MOST_SEEDS} seeds")
        seeds.update(range(first, last + 1))
    return tuple(sorted(seeds))


def parse_diverged_as(text: str) -> DivergedAs:
    """A finite number, `last` or `omit`.

    Raises:
        ValueError: it is none of them.
    """
    if text == "last":
        return "last"
    if text == "omit":
        return "omit"
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def _cannot_write(file: Path, name: str | None = None) -> Problem | None:
    """Found out before hours of training rather than after them; ``name`` is what the user wrote."""
    nearest = next(p for p in file.absolute().parents if p.exists())
    if not file.is_dir() and nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK):
        return None
    if name is not None:
        return Problem("cannot write into this folder", file=name, remedy="give a folder of yours")
    return Problem("cannot write this file", file=str(file), remedy="give a file in a folder of yours")
