"""Two varied keys: the grid that is trained, groups, maps, tables, files, figures."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from helpers import ROOT
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle
from sweeps import run_at

from cvxrl.comparison.export import print_comparison, to_csv, to_document
from cvxrl.comparison.figures.gallery import all_figures
from cvxrl.comparison.figures.maps import failure_maps, score_maps
from cvxrl.comparison.gate import check_names, judge, parse_gate
from cvxrl.comparison.options import Options, check_varied
from cvxrl.comparison.plan import plan_runs
from cvxrl.comparison.result import Comparison, build
from cvxrl.errors import UserError

KEYS = ("train.inner_epochs", "optim.lr")
EPOCHS, RATES = (1, 16, 4), (1e-2, 1e-4, 1e-3)


def compare(**options: object) -> Comparison:
    """`grpo` fails at large products of both and was not run at 16 epochs and 0.01; `lco` has one run going on."""
    runs = [
        run_at(method, dict(zip(KEYS, (epochs, rate), strict=True)), seed, None if fails else 0.9 - 0.01 * seed)
        for method, most in (("grpo", 4e-3), ("lco", 1e-1))
        for epochs in EPOCHS
        for rate in RATES
        if (method, epochs, rate) != ("grpo", 16, 1e-2)
        for seed in range(3)
        for fails in [epochs * rate > most * (1 + 0.1 * (seed - 1))]
    ]
    runs.append(run_at("lco", dict(zip(KEYS, (1, 1e-4), strict=True)), 7, 0.5, status="running"))
    return build(runs, Options(vary=KEYS, resamples=200, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def grid() -> Comparison:
    return compare()


def test_cells_stand_at_their_values_and_missing_ones_are_seen(grid: Comparison) -> None:
    grpo, lco = grid.maps
    assert (grpo.method, grpo.rows, grpo.columns) == ("grpo", [1, 4, 16], [1e-4, 1e-3, 1e-2])
    assert [[cell and cell.failures for cell in line] for line in grpo.cells] == [[0, 0, 3], [0, 1, 3], [0, 3, None]]
    first = lco.cells[0][0]
    assert first is not None and first.seeds == 3 and first.unfinished == 1
    assert first.mean == pytest.approx(0.89) and first.failure_interval is not None
    assert grid.sensitivities == [] and grid.headrooms == []


def test_groups_have_both_values_and_meet_the_baseline_at_the_same_ones(grid: Comparison) -> None:
    labels = [s.label for s in grid.summaries]
    assert labels[0] == "grpo[train.inner_epochs=1,optim.lr=0.0001]" and len(labels) == 17
    pairs = {p.label: p.baseline for p in grid.pairs}
    assert len(pairs) == 8
    at = "[train.inner_epochs=4,optim.lr=0.01]"
    assert pairs[f"lco{at}"] == f"grpo{at}"
    gate = parse_gate(f"diff(lco{at}, grpo{at}) > 0.5")
    assert check_names(gate, grid) == [] and judge(gate, grid).met


def test_tables_fit_and_hold_values_seeds_and_failures(grid: Comparison) -> None:
    stream = io.StringIO()
    print_comparison(grid, stream)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    scores = text[text.index("Mean eval/accuracy: train.inner_epochs (down) x optim.lr (across)") :].splitlines()
    assert scores[2].split() == ["grpo", "1", "0.890", "0.890", "0.100"]
    assert scores[3].split() == ["3", "3", "3", "!", "3"]
    assert scores[6].split() == ["16", "0.890", "0.100", "-"]
    failed = text[text.index("Failed runs: ") :].splitlines()
    assert failed[3].split() == ["4", "0", "of", "3", "1", "of", "3", "3", "of", "3"]
    assert "0 of 3 +1?" in text


def test_json_and_csv_hold_both_keys(grid: Comparison) -> None:
    document = to_document(grid, [])
    assert document["options"]["vary"] == list(KEYS)
    assert document["maps"][0]["cells"][2][2] is None and document["maps"][0]["cells"][1][1]["failures"] == 1
    rows = list(csv.DictReader(io.StringIO(to_csv(grid))))
    assert len(rows) == 51 and (rows[0]["train.inner_epochs"], rows[0]["optim.lr"]) == ("1", "0.0001")


def words(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_maps_say_in_words_and_shapes_what_they_say_in_colour(grid: Comparison) -> None:
    scores, failures = score_maps(grid), failure_maps(grid)
    assert scores is not None and failures is not None
    assert words(scores).count("not run") == 1 == words(failures).count("not run")
    assert "0.890\nn = 3" in words(scores) and any("! 1" in text for text in words(scores))
    assert "1 of 3\n1-91%" in words(failures)
    failing = sum(cell is not None and cell.failures > 0 for m in grid.maps for line in m.cells for cell in line)
    for figure in (scores, failures):
        shapes = [patch for axis in figure.axes for patch in axis.patches]
        assert sum(isinstance(shape, Polygon) for shape in shapes) == failing
        assert sum(isinstance(shape, Rectangle) and shape.get_hatch() is not None for shape in shapes) == 1
        assert figure.get_figwidth() < 5  # printed 80 mm wide, letters stay 70% of their size


def test_every_other_figure_can_be_drawn_too(grid: Comparison) -> None:
    titles = [shown.title for shown in all_figures(grid)]
    assert "Score maps" in titles and "Failure maps" in titles and "Sensitivity" not in titles


def test_a_method_without_one_of_the_keys_is_not_lost() -> None:
    beta = [run_at("lco", {"objective.beta": b, "optim.lr": lr}, 0, 0.8) for b in (1.0, 2.0) for lr in RATES]
    c = build(
        [*beta, *(run_at("grpo", {"optim.lr": lr}, 0, 0.7) for lr in RATES)], Options(vary=("objective.beta", KEYS[1]))
    )
    assert c.maps[1].method == "grpo" and c.maps[1].rows[0] is None
    assert [cell is not None for cell in c.maps[1].cells[0]] == [True] * 3
    stream = io.StringIO()
    print_comparison(c, stream)
    assert "grpo -" in " ".join(stream.getvalue()[stream.getvalue().index("(down)") :].split())


def test_one_varied_key_has_no_map() -> None:
    runs = [run_at("a", {"optim.lr": lr}, seed, 0.8) for lr in (1e-3, 1e-2) for seed in range(3)]
    one = build(runs, Options(vary="optim.lr", resamples=100))  # type: ignore[arg-type]
    assert one.maps == [] and len(one.sensitivities) == 1
    assert score_maps(one) is None and failure_maps(one) is None
    assert to_document(one, [])["options"]["vary"] == "optim.lr"


def test_two_keys_with_values_are_trained_as_a_grid(tmp_path: Path) -> None:
    vary = [("train.inner_epochs", ["1", "4"]), ("optim.lr", ["1e-4", "1e-3", "1e-2"])]
    plan = plan_runs([ROOT / "recipes" / "math_grpo.yaml"], ["train.steps=2"], [0, 1], tmp_path, vary)
    assert len(plan.jobs) == 12 and len(set(plan.runs)) == 12
    job = plan.jobs[-1]
    assert job.path == tmp_path / "train.inner_epochs=4" / "optim.lr=1e-2" / "math_grpo" / "seed-1"
    assert job.overrides == ("train.steps=2", "train.inner_epochs=4", "optim.lr=1e-2")
    assert job.name == "math_grpo train.inner_epochs=4 optim.lr=1e-2 seed-1"
    assert "1 method x 2 values of train.inner_epochs x 3 values of optim.lr x 2 seeds = 12 runs" in next(
        iter(plan.describe(1))
    )


@pytest.mark.parametrize(
    ("varied", "words"),
    [
        ([("a", ["1"]), ("a", ["2"])], "`a` is varied twice"),
        ([("a", ["1"]), ("b", ["2"]), ("c", ["3"])], "3 keys; a map has two sides"),
        ([("a", ["1", "2"]), ("b", [])], "`b` has no values"),
    ],
)
def test_what_is_no_grid_is_refused(varied: list[tuple[str, list[str]]], words: str) -> None:
    with pytest.raises(UserError, match="--vary") as caught:
        check_varied(varied)
    assert words in caught.value.problems[0].message and caught.value.problems[0].remedy


def test_unknown_keys_are_all_named() -> None:
    runs = [run_at("a", {"optim.lr": lr}, seed, 0.8) for lr in (1e-3, 1e-2) for seed in range(3)]
    with pytest.raises(UserError) as caught:
        build(runs, Options(vary=("optim.l", "train.inner_epoch")))
    assert [p.message for p in caught.value.problems] == [
        "no recipe has a key `optim.l`",
        "no recipe has a key `train.inner_epoch`",
    ]
