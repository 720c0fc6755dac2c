"""All runs of a study, whoever keeps them, and which of its cells have none or too few."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from cvxrl.comparison.options import Options
from cvxrl.comparison.run import Run, is_scored
from cvxrl.study import cells as of
from cvxrl.study.cells import Cell
from cvxrl.study.choices import Choice, choose
from cvxrl.study.plan import Study

# Cells with the runs that there are of them.
Found = list[tuple[Cell, list[Run]]]
# Looks the runs of cells up, where they are kept.
Finder = Callable[[Sequence[Cell]], Found]


@dataclass(frozen=True)
class Collected:
    """Runs of every stage, each cell of the plan with those that there are of it.

    Attributes:
        tuned: of the stage that chooses, its alternatives included.
        confirmed: of the stage that is judged.
        in_grids: of all grids.
    """

    tuned: Found
    confirmed: Found
    in_grids: Found

    @property
    def every(self) -> Found:
        """All of them in the order of the stages."""
        return [*self.tuned, *self.confirmed, *self.in_grids]

    @property
    def ended(self) -> Collected:
        """Without the runs that have not come to an end."""
        return Collected(_ended(self.tuned), _ended(self.confirmed), _ended(self.in_grids))


def collect(study: Study, chosen: Mapping[str, Choice], find: Finder) -> Collected:
    """Look up the runs of every cell, those of the alternatives at the chosen values."""
    tuned = find([*of.tuning(study), *of.alternatives(study, chosen)])
    return Collected(tuned, find(of.confirmation(study, chosen)), find(of.grids(study, chosen)))


def choose_from(study: Study, find: Finder) -> tuple[dict[str, Choice], bool]:
    """What tuning chooses by the runs that there are, and whether that is all of them."""
    if study.tuning is None:
        return {}, True
    options = Options(confidence=study.confidence)
    first = find(of.tuning(study))
    second = find(of.alternatives(study, choose(_ended(first), study.tuning.by, options)))
    chosen = choose(_ended([*first, *second]), study.tuning.by, options)
    return chosen, not missing([*first, *second]) and len(chosen) == len(study.labels)


def missing(found: Found) -> int:
    """Runs that have not ended."""
    return sum(len(seeds) for _, seeds in lacking(found))


def lacking(found: Found) -> list[tuple[Cell, tuple[int, ...]]]:
    """Seeds of every cell that have not ended; of a cell that was not run, all of them."""
    there = [(cell, {run.seed for run in runs if is_scored(run)}) for cell, runs in found]
    without = [(cell, tuple(seed for seed in cell.seeds if seed not in seeds)) for cell, seeds in there]
    return [(cell, seeds) for cell, seeds in without if seeds]


def _ended(found: Found) -> Found:
    return [(cell, [run for run in runs if is_scored(run)]) for cell, runs in found]
