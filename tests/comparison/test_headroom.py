"""Headroom from runs to numbers, verdicts, gates, tables, files and the figure."""

from __future__ import annotations

import io
from dataclasses import replace
from math import inf

import pytest
from sweeps import run_at, sweep

from cvxrl.comparison.export import print_comparison, to_csv, to_document, to_markdown_page
from cvxrl.comparison.figures.gallery import GALLERY
from cvxrl.comparison.figures.headroom import failure_curves
from cvxrl.comparison.gate import Verdict, check_names, judge, parse_gate
from cvxrl.comparison.headroom_table import factor_span, half_text, headroom_text
from cvxrl.comparison.options import Options
from cvxrl.comparison.result import Comparison, build
from cvxrl.comparison.run import LoggedRun
from cvxrl.errors import UserError
from cvxrl.stats.bootstrap import Interval

GOOD, FINE, FAILS = [0.9, 0.91, 0.92, 0.9, 0.91], [0.8, 0.81, 0.82, 0.8, 0.81], [None] * 5
# Both are best at 1e-4; `steady` bears thirty times as much and `brittle` three times.
BRITTLE = {1e-4: GOOD, 3e-4: FINE, 1e-3: FAILS, 3e-3: FAILS, 1e-2: FAILS}
STEADY = {1e-4: GOOD, 3e-4: FINE, 1e-3: FINE, 3e-3: FINE, 1e-2: FAILS}
NEVER = {1e-4: GOOD, 3e-4: FINE, 1e-3: FINE, 3e-3: FINE, 1e-2: FINE}


def compare(*runs: LoggedRun, **options: object) -> Comparison:
    return build(runs, Options(vary="optim.lr", resamples=2000, **options))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def three() -> Comparison:
    return compare(*sweep("brittle", BRITTLE), *sweep("steady", STEADY), *sweep("never", NEVER))


def ask(text: str, c: Comparison) -> Verdict:
    gate = parse_gate(text)
    assert check_names(gate, c) == []
    return judge(gate, c)


def test_half_fail_point_best_value_and_their_ratio(three: Comparison) -> None:
    brittle, steady, never = three.headrooms
    assert [t.failures for t in brittle.trials] == [0, 0, 5, 5, 5] and brittle.trials[0].interval.high > 0.5
    assert brittle.half == pytest.approx(5.5e-4, rel=0.1) and brittle.best == 1e-4
    assert brittle.headroom == pytest.approx(5.5, rel=0.1)
    assert brittle.headroom_interval is not None
    assert 2.7 < brittle.headroom_interval.low < 3.3 and 9 < brittle.headroom_interval.high < 11
    assert steady.half == pytest.approx(5.5e-3, rel=0.1)
    assert never.half is None and never.headroom is None and never.half_interval.high == inf
    assert never.headroom_interval is not None and never.headroom_interval.low == pytest.approx(100, rel=0.05)


def test_verdicts_are_what_the_intervals_say(three: Comparison) -> None:
    steady, never = three.headroom_pairs
    assert steady.verdict == "more" and steady.ratio == pytest.approx(10, rel=0.1)
    assert steady.ratio_interval is not None and 2 < steady.ratio_interval.low < 10 < steady.ratio_interval.high
    assert never.verdict == "more" and never.ratio is None
    assert never.ratio_interval is not None and never.ratio_interval.high == inf
    turned = compare(*sweep("brittle", BRITTLE), *sweep("steady", STEADY), baseline="steady")
    assert turned.headroom_pairs[0].verdict == "less"
    alike = compare(*sweep("a", BRITTLE), *sweep("b", BRITTLE))
    assert alike.headroom_pairs[0].verdict == "not resolved"


def test_intervals_against_the_baseline_hold_for_all_comparisons_together() -> None:
    rough = {1e-4: GOOD, 3e-4: [0.8, 0.82, None, 0.8, 0.81], 1e-3: [0.8, None, None, 0.8, None], 3e-3: FAILS}
    one = compare(*sweep("a", rough), *sweep("b", rough)).headroom_pairs[0].ratio_interval
    many = compare(*(run for name in "abcdef" for run in sweep(name, rough))).headroom_pairs[0].ratio_interval
    assert one is not None and many is not None and many.low < one.low and many.high > one.high


def test_the_choice_of_the_best_value_is_part_of_the_interval() -> None:
    clear = compare(*sweep("a", BRITTLE)).headrooms[0].headroom_interval
    close = compare(*sweep("a", {**BRITTLE, 3e-4: [0.95, 0.85, 0.93, 0.88, 0.92]})).headrooms[0]
    assert clear is not None and close.headroom_interval is not None
    assert close.headroom_interval.low < 1.1 and close.headroom_interval.high > 0.9 * clear.high
    wide = close.headroom_interval.high / close.headroom_interval.low
    assert wide > 2 * clear.high / clear.low


@pytest.mark.parametrize(
    ("text", "met"),
    [
        ("headroom(steady) > 50", True),
        ("headroom(brittle) > 50", False),
        ("low(headroom(brittle)) > 2.5", True),
        ("low(headroom(steady, brittle)) > 1", True),
        ("headroom(steady, brittle) > 5", True),
        ("high(headroom(brittle, steady)) < 1", True),
        ("low(headroom(never, brittle)) > 1", True),
        ("headroom(never) > 1", False),  # its value is beyond the tried ones and so not known
        ("headroom(never) < 1", False),
        ("most(steady) == mean(steady[optim.lr=0.0001])", True),
        ("least(never) > 0.8", True),
        ("most(never) - least(never) < 0.11", True),
        ("most(brittle) - least(brittle) < 0.11", False),
        ("fisher(brittle[optim.lr=0.001], steady[optim.lr=0.001]) < 0.008", True),  # 5 of 5 against none: 1 / 126
        ("fisher(brittle[optim.lr=0.001], steady[optim.lr=0.001]) > 0.0079", True),
        ("fisher(brittle[optim.lr=0.0001], steady[optim.lr=0.0001]) == 1", True),
        ("headroom( steady,brittle ) - 1 > failures(brittle[optim.lr=0.001])", True),
    ],
)
def test_gates(text: str, met: bool, three: Comparison) -> None:
    assert ask(text, three).met == met


def test_gates_refuse_what_has_no_headroom(three: Comparison) -> None:
    for text, hint in (
        ("headroom(steadi) > 1", "did you mean `steady`"),
        ("low(headroom(steady[optim.lr=0.001])) > 1", "brittle, steady, never"),
    ):
        problems = check_names(parse_gate(text), three)
        assert len(problems) == 1 and hint in problems[0].remedy and "--vary KEY" in problems[0].message
    plain = build([run_at("a", {}, seed, 0.9) for seed in range(3)], Options(resamples=100))
    assert "none" in check_names(parse_gate("headroom(a) > 1"), plain)[0].remedy
    for text in ("headroom(a, b, c) > 1", "headroom() > 1", "headroom(a > b) > 1"):
        with pytest.raises(UserError):
            parse_gate(text)


def test_unfinished_runs_block_verdict_and_gate() -> None:
    runs = [*sweep("brittle", BRITTLE), *sweep("steady", STEADY)]
    waiting = compare(*runs, run_at("steady", {"optim.lr": 3e-2}, 0, 0.9, status="running"))
    assert waiting.headroom_pairs[0].verdict == "unfinished"
    assert not ask("low(headroom(steady, brittle)) > 1", waiting).met
    assert "unfinished (steady)" in str(ask("low(headroom(steady, brittle)) > 1", waiting))


def test_what_cannot_be_told_is_not_told() -> None:
    lone = compare(*sweep("a", {v: s[:1] for v, s in BRITTLE.items()})).headrooms[0]
    assert lone.headroom_interval is None and "needs 2 seeds" in headroom_text(lone)
    assert compare(*sweep("a", {1e-4: GOOD})).headrooms == []
    assert compare(*sweep("a", {-1.0: GOOD, 0.0: GOOD, 1.0: GOOD})).headrooms == []
    entropy = [replace(r, records=[{**x, "policy/entropy": 1.0} for x in r.records]) for r in sweep("a", BRITTLE)]
    unjudged = compare(*entropy, metric="policy/entropy").headrooms[0]
    assert unjudged.best is None and unjudged.headroom is None and unjudged.half is not None
    gone = [r for r in sweep("a", BRITTLE) if r.records[-1]["eval/accuracy"] != 0.1]
    gone += [
        run_at("a", {"optim.lr": lr}, seed, 0.8, status="diverged") for lr in (1e-3, 3e-3, 1e-2) for seed in range(5)
    ]
    assert compare(*gone).headrooms[0].headroom_interval is not None
    assert compare(*gone, diverged_as="omit").headrooms[0].headroom_interval is None  # survivors choose the best


def test_a_best_value_that_was_chosen_beforehand_has_no_uncertainty() -> None:
    runs = sweep("a", {**BRITTLE, 3e-4: [0.95, 0.85, 0.93, 0.88, 0.92]})
    fixed = build(runs, Options(vary="optim.lr", resamples=500), best={"a": 2e-4}).headrooms[0]
    assert fixed.best == 2e-4 and fixed.half is not None and fixed.headroom == fixed.half / 2e-4
    ends = fixed.half_interval, fixed.headroom_interval
    assert ends[1] is not None and ends[1].low == pytest.approx(ends[0].low / 2e-4, rel=0.03)
    assert ends[1].high == pytest.approx(ends[0].high / 2e-4, rel=0.03)


def test_a_method_that_fails_at_small_values_has_neither_more_nor_less() -> None:
    turned = dict(zip(BRITTLE, list(BRITTLE.values())[::-1], strict=True))
    c = compare(*sweep("brittle", BRITTLE), *sweep("turned", turned))
    assert c.headroom_pairs[0].verdict == "not resolved" and c.headroom("turned").curve.values == []
    assert half_text(c.headroom("turned")) == "failures fall,\nnot known"
    assert failure_curves(c) is not None


def test_words_for_open_ends(three: Comparison) -> None:
    assert half_text(three.headroom("never")) == "> 0.01\n[> 0.01]"
    assert headroom_text(three.headroom("never")) == "> x100\nx100 or more"
    assert factor_span(Interval(0, inf)) == "not known"
    assert factor_span(Interval(0, 4)) == "x4 or less" and factor_span(Interval(2, 4)) == "[x2, x4]"


def test_tables_fit_and_files_hold_it(three: Comparison) -> None:
    stream = io.StringIO()
    print_comparison(three, stream)
    text = stream.getvalue()
    assert max(map(len, text.splitlines())) <= 80
    assert "Headroom: optim.lr at which half the seeds fail" in text and "> 0.01" in text
    document = to_document(three, [])
    assert document["headroom"][0]["best"] == 1e-4 and "draws" not in document["headroom"][0]
    assert document["headroom"][2]["half_interval"]["high"] is None
    assert document["headroom_comparisons"][0]["verdict"] == "more"
    assert len(document["headroom"][0]["curve"]["share"]) == len(document["headroom"][0]["curve"]["values"])
    assert to_csv(three).count("\n") == 76 and "optim.lr" in to_csv(three).splitlines()[0]
    assert "### Headroom" in to_markdown_page(three, "cvxrl compare")


def test_figure_hides_no_method_and_no_open_end(three: Comparison) -> None:
    figure = failure_curves(three)
    assert figure is not None and figure.get_figwidth() < 5  # printed 80 mm wide, letters stay 70% of their size
    top, bottom = figure.axes
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["brittle (5 seeds)", "steady (5 seeds)", "never (5 seeds)"]
    styles = {(line.get_color(), line.get_linestyle()) for line in top.lines if len(line.get_xdata()) > 10}
    assert len(styles) == 3 == len({dash for _, dash in styles})
    firsts = [
        line.get_xdata()[0] for line in top.lines if line.get_linestyle() == "None" and line.get_markersize() == 5
    ]
    assert len(set(firsts)) == 3  # points of methods stand beside one another
    assert sum(line.get_marker() == ">" for line in bottom.lines) == 1
    assert any(draw is failure_curves for _, draw, _ in GALLERY)
