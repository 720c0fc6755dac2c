"""How far a study is, and how long the rest of it takes at the pace of the runs that have finished."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cvxrl.comparison.options import Options, parse_seeds
from cvxrl.comparison.plan import Plan, seconds_per_step
from cvxrl.errors import UserError
from cvxrl.report.document import Table
from cvxrl.report.format import NOTHING, clock
from cvxrl.runs.directory import RunDir
from cvxrl.study import cells as of
from cvxrl.study.cells import Cell, Stage, label_of
from cvxrl.study.choices import Choice, choose
from cvxrl.study.directories import Planned, plan_cells, read_cells
from cvxrl.study.plan import Study


@dataclass(frozen=True)
class Progress:
    """A method in a regime in a stage.

    Attributes:
        stage: of the study.
        label: METHOD@REGIME, with its grid.
        values: of the varied key, or multiples of what is not chosen yet, as words.
        runs, done: of all cells; finished and diverged ones are done.
        seconds: that one more run takes; None where no run tells.
    """

    stage: Stage
    label: str
    values: str
    runs: int
    done: int
    seconds: float | None


def forecast(study: Study, file: Path, out: Path, chosen: Mapping[str, Choice] | None) -> list[Progress]:
    """Every method, regime and stage, those whose values are not chosen yet with the runs that they will have.

    Raises:
        UserError: a recipe is wrong, or what is there is of another recipe.
    """
    planned = plan_cells(study, file, of.tuning(study), out)
    first = chosen or _first_round(study, planned)
    known = chosen or {}
    later = [*of.alternatives(study, first), *of.confirmation(study, known), *of.grids(study, known)]
    planned += plan_cells(study, file, later, out)
    paces = _Paces(planned)
    rows: dict[tuple[Stage, str], list[tuple[Cell, Plan]]] = {}
    for cell, plan in planned:
        rows.setdefault((cell.stage, cell.label), []).append((cell, plan))
    found = [
        Progress(
            stage,
            label,
            ", ".join(cell.place for cell, _ in members),
            sum(len(plan.runs) for _, plan in members),
            sum(len(plan.runs) - len(plan.jobs) for _, plan in members),
            paces.of(members[0][0]),
        )
        for (stage, label), members in rows.items()
    ]
    coming = [] if chosen else _unchosen(study, paces, tried=bool(first))
    return sorted([*found, *coming], key=lambda one: of.STAGES.index(one.stage))


def time_left(rows: Sequence[Progress], at_a_time: int) -> str:
    """`about 1:02:05`; that it is not known where nothing has finished."""
    open_rows = [row for row in rows if row.runs > row.done]
    if any(row.seconds is None for row in open_rows):
        return "in a time that the first run will show"
    seconds = sum((row.runs - row.done) * (row.seconds or 0.0) for row in open_rows)
    return f"about {clock(seconds / at_a_time)}"


def runs_left(rows: Sequence[Progress]) -> int:
    """Runs that have not ended."""
    return sum(row.runs - row.done for row in rows)


def forecast_table(study: Study, rows: Sequence[Progress], at_a_time: int) -> Table:
    """What is run in which stage, how much of it is there, and how long the rest takes."""
    lines: list[list[str]] = []
    for stage in of.STAGES:
        for row in (row for row in rows if row.stage == stage):
            left = (row.runs - row.done) * row.seconds / at_a_time if row.seconds is not None else None
            first = stage if not any(line[0] == stage for line in lines) else ""
            time = NOTHING if left is None else clock(left)
            lines.append([first, row.label, row.values, str(row.runs), str(row.done), time])
    left = runs_left(rows)
    note = f"{left} of {sum(row.runs for row in rows)} runs left, {at_a_time} at a time: {time_left(rows, at_a_time)}."
    columns = ["<stage", "<method@regime", f"<{study.vary}", "runs", "done", "left [h:m:s]"]
    return Table(f"{study.name}: runs", columns, lines, note)


class _Paces:
    """Seconds of a run: of its own method and regime, or else of its regime, or else of all that finished."""

    def __init__(self, planned: Sequence[tuple[Cell, Plan]]) -> None:
        self._taken = [
            (cell.method, cell.regime, seconds)
            for cell, plan in planned
            for path in plan.runs
            if path.is_dir() and (seconds := _seconds(path)) is not None
        ]

    def of(self, cell: Cell) -> float | None:
        return self.seconds(cell.method, cell.regime)

    def seconds(self, method: str, regime: str) -> float | None:
        own = [s for m, r, s in self._taken if (m, r) == (method, regime)]
        near = own or [s for _, r, s in self._taken if r == regime] or [s for *_, s in self._taken]
        return sum(near) / len(near) if near else None


def _seconds(path: Path) -> float | None:
    """From start to end of a run that finished in one session; of one that was resumed, by the pace of its steps."""
    try:
        record = RunDir(path).read_record()
    except (FileNotFoundError, UserError):
        return None
    if record.status != "finished" or record.ended is None:
        return None
    if record.resumed:
        pace = seconds_per_step(path)
        return None if pace is None else pace * int(record.result.get("step", 0))
    return (datetime.fromisoformat(record.ended) - datetime.fromisoformat(record.started)).total_seconds()


def _first_round(study: Study, planned: Planned) -> dict[str, Choice]:
    """What the first round of tuning chooses, once it is whole: the alternatives are tried there."""
    if study.tuning is None or any(plan.jobs for _, plan in planned):
        return {}
    return choose(read_cells(planned), study.tuning.by, Options(confidence=study.confidence))


def _unchosen(study: Study, paces: _Paces, *, tried: bool) -> Iterator[Progress]:
    """What the choices decide on: alternatives unless ``tried`` says where, the confirmatory stage, grids at multiples.

    A grid of multiples is labelled by its grid, and chosen by its method and regime.
    """
    for method, regime in study.tuned:
        seconds, label = paces.seconds(method, regime), label_of(method, regime)
        others = len(study.methods[method].alternatives)
        if others and not tried and study.tuning is not None:
            count = others * len(parse_seeds(study.tuning.seeds))
            yield Progress("tuning", label, f"{others} alternatives", count, 0, seconds)
        seeds = study.multiples(method)
        count = sum(len(parse_seeds(text)) for text in seeds.values())
        yield Progress("confirmation", label, ", ".join(f"x{m:g}" for m in seeds), count, 0, seconds)
    for name, grid in study.grids.items():
        for regime in grid.regimes or study.regimes if grid.multiples else ():
            for method in grid.methods:
                count = len(grid.multiples) * len(parse_seeds(grid.seeds))
                values = ", ".join(f"x{m:g}" for m in grid.multiples)
                yield Progress("grids", label_of(method, regime, name), values, count, 0, paces.seconds(method, regime))
