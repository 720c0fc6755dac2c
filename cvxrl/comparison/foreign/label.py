"""Which method and which seed a foreign run is: as the user says, or as its configuration and its name say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cvxrl.comparison.foreign.inside import inner_name
from cvxrl.errors import Problem, UserError

# `grpo-seed0`, `grpo_seed_0`, `grpo.seed=0`, with digits (a date) behind it or not; `grpo/seed-0` of a folder.
_NAME = re.compile(r"(?P<method>.*?)[-_. ]?\bseed[-_= ]?(?P<seed>\d+)(?:[-_]\d[\d:T._-]*)?", re.IGNORECASE)
_UNSPLIT = re.compile(r"_(?=seed[-_= ]?\d)", re.IGNORECASE)
_STATED = re.compile(r"(?P<method>[^:=]+):(?P<seed>\d{1,9})=(?P<path>.+)", re.DOTALL)


@dataclass(frozen=True)
class Label:
    """What a run is a seed of."""

    method: str
    seed: int


@dataclass(frozen=True)
class Stated:
    """What the user says of foreign runs.

    Attributes:
        labels: method and seed by path (`--as`).
        aliases: from names of ours to theirs (`--alias`).
    """

    labels: Mapping[Path, Label] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)


def parse_label(text: str) -> tuple[str, Label]:
    """`METHOD:SEED=PATH` as path and label.

    Raises:
        UserError: it is written otherwise.
    """
    found = _STATED.fullmatch(text)
    if found is None:
        what = f"`{text}` is not METHOD:SEED=PATH"
        raise UserError(Problem(what, "--as", remedy="write e.g. --as grpo:0=trl_runs/first"))
    return found["path"], Label(found["method"].strip(), int(found["seed"]))


def parse_alias(text: str) -> tuple[str, str]:
    """`OURS=THEIRS` as the two names.

    Raises:
        UserError: it is written otherwise.
    """
    ours, equals, theirs = text.partition("=")
    if not equals or not ours.strip() or not theirs.strip():
        what = f"`{text}` is not OURS=THEIRS"
        raise UserError(Problem(what, "--alias", remedy="write e.g. --alias eval/accuracy=eval_rewards/check/mean"))
    return ours.strip(), theirs.strip()


def find_label(path: Path, name: str, seed: int | None) -> Label:
    """Method and seed of a run that the user has said nothing of.

    Args:
        path: where it is.
        name: what it is called: a folder, a file without its ending, or what its program calls it.
        seed: as its configuration says, or None.

    Raises:
        UserError: the two cannot be told, or name and configuration contradict one another.
    """
    found = _NAME.fullmatch(_UNSPLIT.sub("-", name))
    # What is around a file says nothing of the runs in it.
    around = path.absolute().parent.name if inner_name(path) is None else ""
    method = None if found is None else found["method"].strip("-_. ") or around
    if found is None or not method:
        what = "does not say which method it is a run of" + ("" if seed is not None else ", nor its seed")
        raise UserError(_problem(path, what, f"METHOD:{'SEED' if seed is None else seed}"))
    if seed is not None and seed != int(found["seed"]):
        what = f"is called seed {found['seed']}, and its configuration says seed {seed}"
        raise UserError(_problem(path, what, f"{method}:{seed}"))
    return Label(method, int(found["seed"]))


def _problem(path: Path, what: str, label: str) -> Problem:
    return Problem(what, file=str(path), remedy=f"say --as {label}={path}, or name it METHOD-seedN")
