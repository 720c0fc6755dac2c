"""What the tuning stage chooses, and the file that keeps it: from then on the plan may not change."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import ValidationError

from cvxrl.comparison.options import Options
from cvxrl.comparison.run import Run
from cvxrl.comparison.score import score_run
from cvxrl.errors import Problem, UserError
from cvxrl.recipe.base import Section
from cvxrl.runs.files import write_text
from cvxrl.study.plan import Settings, Study

if TYPE_CHECKING:
    from cvxrl.study.cells import Cell

_HIGHEST = Literal["area", "mean"]


class Choice(Section):
    """What the tuning stage found for a method in a regime.

    Attributes:
        value: of the varied key.
        settings: the alternative that was best there, empty for the method as it is.
        scores: what was maximised, for every candidate in the order in which they were tried.
    """

    value: float
    settings: Settings
    scores: dict[str, float]


class Choices(Section):
    """Choices of a study, by METHOD@REGIME, with the digest of the plan that they belong to."""

    digest: str
    chosen: dict[str, Choice]


def choose(found: Sequence[tuple[Cell, Sequence[Run]]], by: _HIGHEST, options: Options) -> dict[str, Choice]:
    """The best candidate of every method in every regime; the first of equals.

    A run that diverged or broke off counts as what it scores; a candidate without runs is none.
    """
    scores: dict[str, dict[str, float]] = {}
    best: dict[str, Cell] = {}
    for cell, runs in found:
        of_label = scores.setdefault(cell.label, {})
        height = _height(runs, by, options)
        if height is None:
            continue
        if height > max(of_label.values(), default=-np.inf):
            best[cell.label] = cell
        of_label[cell.candidate] = height
    return {
        label: Choice(value=cell.value, settings=cell.settings, scores=scores[label]) for label, cell in best.items()
    }


def read_choices(file: Path, study: Study) -> dict[str, Choice] | None:
    """Choices that were made before, or None.

    Raises:
        UserError: they are damaged, or the plan has changed since.
    """
    try:
        kept = Choices.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise UserError(Problem("is damaged", file=str(file), remedy="restore it; deleting it chooses anew")) from None
    if kept.digest != plan_digest(study):
        what = "the plan has changed since its values were chosen"
        raise UserError(Problem(what, file=str(file), remedy="restore the plan, or give the changed one another name"))
    return kept.chosen


def write_choices(file: Path, study: Study, chosen: Mapping[str, Choice]) -> None:
    """Keep the choices, so that the confirmatory stage is of these and no others."""
    write_text(file, Choices(digest=plan_digest(study), chosen=dict(chosen)).model_dump_json(indent=1) + "\n")


def plan_digest(study: Study) -> str:
    """SHA-256 of all that the plan says: neither a run nor a rule may change once values have been chosen."""
    return hashlib.sha256(study.model_dump_json(exclude_defaults=True).encode()).hexdigest()


def _height(runs: Sequence[Run], by: _HIGHEST, options: Options) -> float | None:
    scored = [score_run(run, options) for run in runs]
    values = [value for s in scored if (value := s.area if by == "area" else s.score) is not None]
    return float(np.mean(values)) if values else None
