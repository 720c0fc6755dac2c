"""The two stages of a study: which runs each one needs, what the first chooses, and the file that keeps the choice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from cvxrl.comparison.options import Options, parse_seeds
from cvxrl.comparison.plan import Plan, plan_runs
from cvxrl.comparison.run import LoggedRun, Run
from cvxrl.comparison.score import score_run
from cvxrl.comparison.sources import read_run
from cvxrl.comparison.study import Settings, Study, as_overrides, recipe_of
from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.recipe.base import Section
from cvxrl.runs.files import write_text

Stage = Literal["tuning", "confirmation"]


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


@dataclass(frozen=True)
class Setting:
    """Some seeds of one method in one regime at one value.

    Attributes:
        stage: of the study.
        label: METHOD@REGIME.
        value: of the varied key.
        variant: number of the alternative, from 1; 0 is the method as it is.
        settings: the alternative's.
        seeds: training seeds.
    """

    stage: Stage
    label: str
    value: float
    variant: int
    settings: Settings
    seeds: tuple[int, ...]

    @property
    def candidate(self) -> str:
        """Name among the candidates of the tuning stage."""
        return f"{self.value:g}" + (f", alternative {self.variant}" if self.variant else "")


def tuning(study: Study) -> list[Setting]:
    """Every method in every regime at every value."""
    seeds = parse_seeds(study.tuning.seeds)
    return [
        Setting("tuning", label, value, 0, {}, seeds)
        for label in study.labels
        for value in study.regimes[label.partition("@")[2]].values or study.tuning.values
    ]


def alternatives(study: Study, first: dict[str, Choice]) -> list[Setting]:
    """The alternatives of every method at the value that the first round of tuning chose."""
    seeds = parse_seeds(study.tuning.seeds)
    return [
        Setting("tuning", label, choice.value, number, settings, seeds)
        for label, choice in first.items()
        for number, settings in enumerate(_method(study, label).alternatives, start=1)
    ]


def confirmation(study: Study, chosen: dict[str, Choice]) -> list[Setting]:
    """Every method in every regime at every multiple of its chosen value, on fresh seeds."""
    return [
        Setting("confirmation", label, choice.value * multiple, 0, choice.settings, parse_seeds(seeds))
        for label, choice in chosen.items()
        for multiple, seeds in study.confirmation.seeds.items()
    ]


def plan_setting(study: Study, plan_file: Path, setting: Setting, out: Path) -> Plan:
    """Runs of a setting, and which of them are still to be trained.

    Raises:
        UserError: the recipe is wrong, or what is there is of another recipe.
    """
    method, _, regime = setting.label.partition("@")
    chosen = study.methods[method]
    sets = as_overrides({"name": method}, study.set, chosen.set, study.regimes[regime].set, setting.settings)
    variant = f"alternative-{setting.variant}" if setting.variant else ""
    folder = out / study.name / setting.stage / regime / variant
    recipe = recipe_of(chosen, plan_file)
    return plan_runs([recipe], sets, setting.seeds, folder, [(study.vary, [f"{setting.value:.6g}"])])


def read_setting(setting: Setting, runs: Sequence[Path]) -> list[Run]:
    """Runs of a setting under the name METHOD@REGIME.

    Raises:
        UserError: one is damaged; one problem per file.
    """
    mistakes = Mistakes()
    found = [mistakes.attempt(read_run, path) for path in runs if path.is_dir()]
    if mistakes.problems:
        raise UserError(*mistakes.problems)
    return [replace(run, method=setting.label) for run in found if isinstance(run, LoggedRun)]


def choose(study: Study, found: Sequence[tuple[Setting, Sequence[Run]]], options: Options) -> dict[str, Choice]:
    """The best candidate of every method in every regime; the first of equals.

    A run that diverged or broke off counts as what it scores.
    """
    scores: dict[str, dict[str, float]] = {}
    best: dict[str, Setting] = {}
    for setting, runs in found:
        of_label = scores.setdefault(setting.label, {})
        height = _height(runs, study.tuning.by, options)
        if height > max(of_label.values(), default=-np.inf):
            best[setting.label] = setting
        of_label[setting.candidate] = height
    return {label: Choice(value=s.value, settings=s.settings, scores=scores[label]) for label, s in best.items()}


def read_choices(file: Path, study: Study) -> dict[str, Choice] | None:
    """Choices that were made before, or None.

    Raises:
        UserError: they are damaged, or the plan has changed since in what they depend on.
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


def write_choices(file: Path, study: Study, chosen: dict[str, Choice]) -> None:
    """Keep the choices, so that the confirmatory stage is of these and no others."""
    write_text(file, Choices(digest=plan_digest(study), chosen=chosen).model_dump_json(indent=1) + "\n")


def plan_digest(study: Study) -> str:
    """SHA-256 of the whole plan: neither a run nor a rule may change once values have been chosen."""
    return hashlib.sha256(study.model_dump_json().encode()).hexdigest()


def _method(study: Study, label: str) -> Any:
    return study.methods[label.partition("@")[0]]


def _height(runs: Sequence[Run], by: Literal["area", "mean"], options: Options) -> float:
    scored = [score_run(run, options) for run in runs]
    values = [value for s in scored if (value := s.area if by == "area" else s.score) is not None]
    return float(np.mean(values)) if values else -np.inf
