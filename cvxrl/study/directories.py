"""The run directories of a study's cells: planned, put in an order that wastes least, and read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cvxrl.comparison.plan import Plan, plan_runs
from cvxrl.comparison.run import LoggedRun
from cvxrl.comparison.sources import read_run
from cvxrl.errors import Mistakes, UserError
from cvxrl.study.cells import Cell
from cvxrl.study.collected import Found
from cvxrl.study.plan import Study, as_overrides, recipe_of

# Cells with what is planned for them.
Planned = list[tuple[Cell, Plan]]


def plan_cells(study: Study, plan_file: Path, cells: Sequence[Cell], out: Path) -> Planned:
    """Runs of every cell, and which of them are still to be trained.

    Raises:
        UserError: a recipe is wrong, or what is there is of another recipe; all mistakes.
    """
    mistakes = Mistakes()
    plans = [(cell, mistakes.attempt(_plan_cell, study, plan_file, cell, out)) for cell in cells]
    if mistakes.problems:
        raise UserError(*mistakes.problems)
    return [(cell, plan) for cell, plan in plans if plan is not None]


def together(planned: Planned) -> Plan:
    """One plan of all cells, in which every cell's first seed is trained before any second one.

    So a study that is cut short has evidence on every cell rather than all of it on the first ones.
    """
    whole = Plan(planned=[one for _, plan in planned for one in plan.planned])
    whole.runs = [run for _, plan in planned for run in plan.runs]
    ranked = [(cell.seeds.index(job.seed), job) for cell, plan in planned for job in plan.jobs]
    whole.jobs = [job for _, job in sorted(ranked, key=lambda one: one[0])]
    return whole


def read_cells(planned: Planned) -> Found:
    """Runs of every cell under the name METHOD@REGIME; those that have not begun are not among them.

    Raises:
        UserError: one is damaged; one problem per file.
    """
    mistakes = Mistakes()
    found = [
        (cell, [mistakes.attempt(read_run, path) for path in plan.runs if path.is_dir()]) for cell, plan in planned
    ]
    if mistakes.problems:
        raise UserError(*mistakes.problems)
    return [
        (cell, [replace(run, method=cell.label) for run in runs if isinstance(run, LoggedRun)]) for cell, runs in found
    ]


def _plan_cell(study: Study, plan_file: Path, cell: Cell, out: Path) -> Plan:
    method, name = study.methods[cell.method], {"name": cell.method}
    of_grid = study.grids[cell.grid].set if cell.grid else {}
    sets = as_overrides(name, study.set, method.set, study.regimes[cell.regime].set, of_grid, cell.settings)
    variant = [f"alternative-{cell.variant}"] if cell.variant else []
    folder = out.joinpath(study.name, cell.stage, *([cell.grid] if cell.grid else []), cell.regime, *variant)
    return plan_runs([recipe_of(method, plan_file)], sets, cell.seeds, folder, [(study.vary, [f"{cell.value:.6g}"])])
