"""What is wrong with a plan whose parts are each well formed: seeds that meet, names that stand for nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isclose

from cvxrl.comparison.gate import Gate, parse_gate
from cvxrl.comparison.options import parse_seeds
from cvxrl.errors import UserError, suggest
from cvxrl.study.plan import Grid, Study

_NAMED = 8  # names that a message lists


def contradictions(study: Study) -> Iterator[str]:
    """Lines of the form `key: what is wrong; remedy`."""
    yield from _stages(study)
    yield from _seeds(study)
    yield from _long_values(study)
    for name, method in study.methods.items():
        for key, named in (("regimes", method.regimes or ()), ("values", method.values)):
            yield from _unknown(f"methods.{name}.{key}", named, study.regimes, "regime")
    for name, grid in study.grids.items():
        yield from _unknown(f"grids.{name}.methods", grid.methods, study.methods, "method")
        yield from _unknown(f"grids.{name}.regimes", grid.regimes or (), study.regimes, "regime")
        yield from _untuned(study, name, grid)
    known = [*_cell_names(study)]
    for number, rule in enumerate(study.rules):
        for text in rule.when:
            yield from _of_rule(f"rules.{number}.when", text, known, [*_swept_names(study)])


def _stages(study: Study) -> Iterator[str]:
    if (study.tuning is None) != (study.confirmation is None):
        lacking = "tuning" if study.tuning is None else "confirmation"
        yield f"{lacking}: the one stage needs the other; write both, or only grids"
    elif study.tuning is None and not study.grids:
        yield "tuning: nothing is run; write tuning and confirmation, or grids"
    elif study.tuning is not None and not study.tuned:
        yield "methods: none is tuned in any regime; leave the stages out, or name regimes"


def _long_values(study: Study) -> Iterator[str]:
    """Values that the names of runs and cells, of six digits, would round."""
    given = {f"regimes.{name}.values": regime.values or () for name, regime in study.regimes.items()}
    given |= {f"grids.{name}.values": grid.values for name, grid in study.grids.items()}
    for name, method in study.methods.items():
        given |= {f"methods.{name}.values.{regime}": values for regime, values in method.values.items()}
    if study.tuning is not None:
        given["tuning.values"] = study.tuning.values
    for key, values in given.items():
        for value in values:
            if not isclose(float(f"{value:.6g}"), value, rel_tol=1e-9):
                yield f"{key}: {value!r} has more than six digits; write {value:.6g}"


def _seeds(study: Study) -> Iterator[str]:
    taken: set[int] = set()
    for key, text in _seed_texts(study):
        try:
            seeds = set(parse_seeds(text))
        except UserError as error:
            yield f"{key}: {error.problems[0].message}; write e.g. 0-4"
            continue
        if key == "tuning.seeds":
            taken = seeds
        elif both := sorted(seeds & taken):
            yield f"{key}: seed {both[0]} was used to choose the value; take fresh seeds"


def _seed_texts(study: Study) -> Iterator[tuple[str, str]]:
    if study.tuning is not None:
        yield "tuning.seeds", study.tuning.seeds
    for multiple, text in ({} if study.confirmation is None else study.confirmation.seeds).items():
        yield f"confirmation.seeds.{multiple:g}", text
    for name, method in study.methods.items():
        for multiple, text in (method.confirm or {}).items():
            yield f"methods.{name}.confirm.{multiple:g}", text
    for name, grid in study.grids.items():
        yield f"grids.{name}.seeds", grid.seeds


def _unknown(key: str, named: Iterable[str], known: Iterable[str], what: str) -> Iterator[str]:
    names = list(known)
    for name in named:
        if name not in names:
            yield f"{key}: there is no {what} {name}; {suggest(name, names)}there are {', '.join(names)}"


def _untuned(study: Study, name: str, grid: Grid) -> Iterator[str]:
    """Multiples of a value that is never chosen."""
    if not grid.multiples:
        return
    for method in grid.methods:
        for regime in grid.regimes or study.regimes:
            if method in study.methods and regime in study.regimes and (method, regime) not in study.tuned:
                yield f"grids.{name}.multiples: {method} is not tuned in {regime}; give values"


def _of_rule(key: str, text: str, known: list[str], swept: list[str]) -> Iterator[str]:
    try:
        gate: Gate = parse_gate(text)
    except UserError as error:
        yield f"{key}: {error.problems[0].message}; {error.problems[0].remedy.replace(';', ',')}"
        return
    for names, there in ((gate.names, known), (gate.swept, swept)):
        for name in names:
            if name not in there:
                listed = ", ".join(there[:_NAMED]) + (" and more" if len(there) > _NAMED else "")
                yield f"{key}: there is no {name}; {suggest(name, there)}there are {listed or 'none'}"


def _cell_names(study: Study) -> Iterator[str]:
    """Names of all cells that rules can speak of."""
    yield from study.labels
    for method, regime in study.tuned:
        yield from (f"{method}@{regime}[x{m:g}]" for m in study.multiples(method) if m != 1)
    for name, grid in study.grids.items():
        for label in _grid_labels(study, name, grid):
            yield from (f"{label}[{study.vary}={value:g}]" for value in grid.values)
            yield from (f"{label}[x{m:g}]" if m != 1 else label for m in grid.multiples)


def _swept_names(study: Study) -> Iterator[str]:
    """Names of what runs at several values."""
    for method, regime in study.tuned:
        if len(study.multiples(method)) > 1:
            yield f"{method}@{regime}"
    for name, grid in study.grids.items():
        if len(grid.values) + len(grid.multiples) > 1:
            yield from _grid_labels(study, name, grid)


def _grid_labels(study: Study, name: str, grid: Grid) -> list[str]:
    return [f"{method}@{regime}@{name}" for regime in grid.regimes or study.regimes for method in grid.methods]
