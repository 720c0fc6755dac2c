"""Figures of a study: what they show of runs whose numbers are known."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from made_studies import PLAN
from matplotlib.axes import Axes

from cvxrl.comparison.run import LoggedRun
from cvxrl.study.cells import Cell
from cvxrl.study.choices import Choice
from cvxrl.study.collected import Collected, Found, collect
from cvxrl.study.contrasts import contrasts
from cvxrl.study.figures.failures import failures_over_chosen
from cvxrl.study.figures.forest import headroom_forest
from cvxrl.study.figures.gallery import all_figures
from cvxrl.study.figures.maps import grid_maps
from cvxrl.study.figures.plane import accuracy_entropy
from cvxrl.study.figures.seeds import seed_curves
from cvxrl.study.plan import Study, load_study
from cvxrl.study.tables import contrasts_table, rules_table
from cvxrl.study.verdict import Judged, judge_study

RULED = (
    PLAN.replace("{1: 0-3, 4: 0-1}", "{1: 0-3, 2: 0-3, 8: 0-3}")
    .replace("low(diff(lco@once, grpo@once)) > 0", "low(headroom(lco@once, grpo@once)) > 1")
    .replace(
        "rules:", "grids:\n  map: {methods: [grpo], regimes: [once], values: [1.0e-3, 1.0e-2], seeds: 0-3}\nrules:"
    )
)
Whole = tuple[Study, Collected, Judged]
# Falls at twice the chosen value and more; lco in the second regime never does.
FALLS, RISES = (0.3, 0.6, 0.7, 0.2, 0.1), (0.3, 0.6, 0.7, 0.8, 0.9)


def find(cells: Sequence[Cell]) -> Found:
    found: Found = []
    for cell in cells:
        bad = (cell.multiple or cell.value / 1e-3) > (4 if cell.method == "lco" else 1.5)
        curve = FALLS if bad and (cell.method, cell.regime) != ("lco", "twice") else RISES
        records: list[dict[str, Any]] = [
            {"step": step, "eval/accuracy": value, "eval/stderr": 0.01} | ({"policy/entropy": 1 / step} if step else {})
            for step, value in enumerate(curve)
        ]
        recipe = {"optim": {"lr": cell.value, "warmup_steps": 0}, "train": {"inner_epochs": 1, "minibatches": 1}}
        runs = [
            LoggedRun(Path(f"{cell.label}-{seed}"), cell.label, seed, 4, records, recipe=recipe, task="t")
            for seed in cell.seeds
        ]
        found.append((cell, list(runs)))
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    file = tmp_path_factory.mktemp("plan") / "plan.yaml"
    file.write_text(RULED)
    study = load_study(file)
    chosen = {label: Choice(value=1e-3, settings={}, scores={}) for label in study.labels}
    collected = collect(study, chosen, find)
    return study, collected, judge_study(study, chosen, collected)


def titles(figure: Any) -> list[str]:
    return [axis.get_title(loc="left") for axis in figure.axes]


def lines(axis: Axes, marker: str) -> list[Any]:
    return [line for line in axis.lines if line.get_marker() == marker and len(line.get_xdata())]


def test_failures_stand_over_multiples_of_the_chosen_value(whole: Whole) -> None:
    study, _, judged = whole
    figure = failures_over_chosen(study, judged)
    assert figure is not None and titles(figure) == ["once", "twice"]
    axis = figure.axes[0]
    assert [tick.get_text() for tick in axis.get_xticklabels()] == ["x1", "x2", "x8"]
    shares = {tuple(line.get_ydata()) for marker in "os" for line in lines(axis, marker)}
    assert shares == {(0.0, 1.0, 1.0), (0.0, 0.0, 1.0)}


def test_the_forest_shows_headrooms_and_marks_the_contrasts_of_the_rules(
    whole: Whole,
) -> None:
    study, _, judged = whole
    figure = headroom_forest(study, judged)
    assert figure is not None
    above, below = figure.axes
    assert [t.get_text() for t in above.get_yticklabels()] == ["grpo@once", "lco@once", "grpo@twice", "lco@twice"]
    assert [t.get_text() for t in below.get_yticklabels()] == ["lco@once / grpo", "lco@twice / grpo"]
    assert len(lines(above, ">")) == 1  # lco@twice never fails, so its interval is open
    faces = [line.get_markerfacecolor() for line in lines(below, "s")]
    assert faces[0] != "white" and len(faces) == 1  # the other contrast has no number, only a bound
    first, second = contrasts(study, judged)
    assert first.judged and not second.judged and second.ratio is None
    assert second.interval is not None and second.interval.high == inf and second.interval.low > 1
    table = contrasts_table(study, judged)
    assert [row[-1] for row in table.rows] == ["yes", ""] and table.rows[1][3].endswith("or more")


def test_an_open_end_is_told_as_one(whole: Whole, tmp_path: Path) -> None:
    study, collected, _ = whole
    text = RULED.replace("low(headroom(lco@once, grpo@once)) > 1", "high(headroom(lco@twice, grpo@twice)) < 2")
    (tmp_path / "plan.yaml").write_text(text)
    other = load_study(tmp_path / "plan.yaml")
    chosen = {label: Choice(value=1e-3, settings={}, scores={}) for label in study.labels}
    assert rules_table(judge_study(other, chosen, collected)).rows[0][1:3] == ["not met", "open"]


def test_every_seed_has_a_line_and_failed_ones_a_cross(whole: Whole) -> None:
    study, collected, _ = whole
    figure = seed_curves(study, collected)
    assert figure is not None and titles(figure) == ["grpo, once", "grpo, twice", "lco, once", "lco, twice"]
    curves = [line for line in figure.axes[0].lines if len(line.get_xdata()) > 1]
    assert len(curves) == 12 and sum(line.get_linestyle() == ":" for line in curves) == 8
    assert len(lines(figure.axes[0], "x")) == 8 and not lines(figure.axes[3], "x")


def test_a_mark_a_run_and_the_base_policy_in_the_plane(whole: Whole) -> None:
    study, collected, judged = whole
    figure = accuracy_entropy(study, collected, judged)
    assert figure is not None and titles(figure) == ["once", "twice"]
    axis = figure.axes[0]
    marks = lines(axis, "o")
    assert len(marks) == 12 and sum(line.get_markerfacecolor() == "white" for line in marks) == 8
    (base,) = lines(axis, "*")
    assert (base.get_xdata()[0], base.get_ydata()[0]) == (1.0, pytest.approx(0.3))


def test_maps_of_grids_and_all_of_them_on_the_page(whole: Whole) -> None:
    study, collected, judged = whole
    figure = grid_maps(study, judged)
    assert figure is not None and titles(figure) == ["map: once"]
    assert list(lines(figure.axes[0], "o")[0].get_ydata()) == pytest.approx([0.9, 0.1])
    shown = all_figures(study, collected, judged)
    page = (ROOT / "docs" / "compare.md").read_text()
    assert len(shown) == 5 and all(f"| {one.title} |" in page for one in shown)
    assert all("{" not in one.caption for one in shown)


def test_without_runs_there_is_nothing_to_draw(whole: Whole) -> None:
    study, _, judged = whole
    nothing = Collected([], [], [])
    only_grids = Judged("", [], {}, None, judged.grids)
    assert seed_curves(study, nothing) is None and headroom_forest(study, only_grids) is None
    assert failures_over_chosen(study, only_grids) is None and accuracy_entropy(study, nothing, only_grids) is None
