"""The cells of a study: which method, regime, value and seeds each stage runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from cvxrl.comparison.options import parse_seeds
from cvxrl.study.choices import Choice
from cvxrl.study.plan import Grid, Settings, Study

Stage = Literal["tuning", "confirmation", "grids"]
STAGES: tuple[Stage, ...] = ("tuning", "confirmation", "grids")


@dataclass(frozen=True)
class Cell:
    """Seeds of one method in one regime at one value.

    Attributes:
        stage: of the study.
        grid: name of the grid; empty in the other stages.
        method, regime: as the plan names them.
        value: of the varied key.
        multiple: of the chosen value that this is; None where the plan gives the value itself.
        variant: number of the alternative that is tried, from 1; 0 outside of that round.
        settings: the alternative's.
        seeds: training seeds.
    """

    stage: Stage
    grid: str
    method: str
    regime: str
    value: float
    multiple: float | None
    variant: int
    settings: Settings
    seeds: tuple[int, ...]

    @property
    def label(self) -> str:
        """METHOD@REGIME, in a grid METHOD@REGIME@GRID."""
        return label_of(self.method, self.regime, self.grid)

    @property
    def candidate(self) -> str:
        """Name among the candidates of the tuning stage."""
        return f"{self.value:g}" + (f", alternative {self.variant}" if self.variant else "")

    @property
    def place(self) -> str:
        """What tells it from the other cells of its label: `x4`, or the value."""
        if self.multiple is not None:
            return f"x{self.multiple:g}"
        return self.candidate


def label_of(method: str, regime: str, grid: str = "") -> str:
    """A method in a regime, of a grid if there is one, as rules name it."""
    return "@".join([method, regime, *([grid] if grid else [])])


def tuning(study: Study) -> list[Cell]:
    """Every tuned method in each of its regimes at every value."""
    if study.tuning is None:
        return []
    seeds = parse_seeds(study.tuning.seeds)
    return [
        Cell("tuning", "", method, regime, value, None, 0, {}, seeds)
        for method, regime in study.tuned
        for value in study.methods[method].values.get(regime) or study.regimes[regime].values or study.tuning.values
    ]


def alternatives(study: Study, first: Mapping[str, Choice]) -> list[Cell]:
    """The alternatives of every method at the value that the first round of tuning chose."""
    if study.tuning is None:
        return []
    seeds = parse_seeds(study.tuning.seeds)
    return [
        Cell("tuning", "", method, regime, first[label_of(method, regime)].value, None, number, settings, seeds)
        for method, regime in study.tuned
        if label_of(method, regime) in first
        for number, settings in enumerate(study.methods[method].alternatives, start=1)
    ]


def confirmation(study: Study, chosen: Mapping[str, Choice]) -> list[Cell]:
    """Every tuned method in each of its regimes at every multiple of its chosen value, on fresh seeds."""
    return [
        Cell(
            "confirmation",
            "",
            method,
            regime,
            choice.value * multiple,
            multiple,
            0,
            choice.settings,
            parse_seeds(seeds),
        )
        for method, regime in study.tuned
        if (choice := chosen.get(label_of(method, regime))) is not None
        for multiple, seeds in study.multiples(method).items()
    ]


def grids(study: Study, chosen: Mapping[str, Choice]) -> list[Cell]:
    """Every cell of every grid; those at multiples of a value that is not chosen are left out."""
    return [cell for name, grid in study.grids.items() for cell in _of_grid(study, name, grid, chosen)]


def _of_grid(study: Study, name: str, grid: Grid, chosen: Mapping[str, Choice]) -> Iterator[Cell]:
    seeds = parse_seeds(grid.seeds)
    for regime in grid.regimes or study.regimes:
        for method in grid.methods:
            for value in grid.values:
                yield Cell("grids", name, method, regime, value, None, 0, {}, seeds)
            choice = chosen.get(label_of(method, regime))
            for multiple in grid.multiples if choice is not None else ():
                assert choice is not None
                yield Cell("grids", name, method, regime, choice.value * multiple, multiple, 0, choice.settings, seeds)
