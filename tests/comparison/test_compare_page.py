"""The HTML page and its figures: what is drawn, that nothing is loaded, and how a browser shows it."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import opened
from helpers import ROOT
from made_runs import make_run, make_seeds
from matplotlib.figure import Figure

from cvxrl.comparison.export import to_html_page
from cvxrl.comparison.figures.curves import learning_curves, stability_curves
from cvxrl.comparison.figures.gallery import GALLERY, all_figures, figure_files
from cvxrl.comparison.figures.scores import improvement_intervals, performance_profiles
from cvxrl.comparison.figures.sensitivity import sensitivity_curves
from cvxrl.comparison.figures.strands import on_grid, panels, stack, thin
from cvxrl.comparison.gate import judge, parse_gate
from cvxrl.comparison.options import Options
from cvxrl.comparison.result import Comparison, build
from cvxrl.comparison.run import Series
from cvxrl.comparison.sources import discover, read_runs
from cvxrl.report.figure import method_style, new_figure, to_svg

GRPO, LCO = "math_grpo", "math_lco_kld"
FIGURES = ("Learning curves", "Scores", "Against the baseline", "Performance profile", "Stability over training")


def compare(folder: Path, **options: object) -> Comparison:
    found = discover([str(folder)])
    return build(read_runs(found.runs)[0], Options(resamples=100, **options))  # type: ignore[arg-type]


@pytest.fixture
def two(tmp_path: Path) -> Comparison:
    make_seeds(tmp_path, GRPO, [0.7, 0.8, 0.9])
    make_seeds(tmp_path, LCO, [0.8, 0.9])
    make_run(tmp_path, LCO, 2, (0.4, 0.6, 0.9), status="diverged", diverged_at=2)
    return compare(tmp_path)


@pytest.fixture
def sweep(tmp_path: Path) -> Comparison:
    for lr in ("1e-4", "1e-3", "1e-2"):
        for recipe in (GRPO, LCO):
            make_seeds(tmp_path / lr, recipe, [0.5, 0.6], overrides=[f"optim.lr={lr}"])
    return compare(tmp_path, vary="optim.lr")


class Page(HTMLParser):
    """What a page holds: balanced tags, pictures, headings, addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.addresses: list[str] = []
        self.titles: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [given[k] or "" for k in ("src", "href", "srcset", "data", "action") if k in given]
        if tag == "img":
            self.images.append(given)
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h2":
            self.titles.append(data)


def test_the_page_is_whole_and_asks_for_nothing(two: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    gates, command = [judge(parse_gate("mean(math_grpo) > 1"), two)], "cvxrl compare 'a<b>'"
    text = to_html_page(two, gates, command)
    page = Page(text)
    assert page.open == []
    assert all(address.startswith("data:image/svg+xml;base64,") for address in page.addresses)
    assert not re.findall(r"url\(|@import|<script|<link|https?://", re.sub(r"base64,[^']*", "", text))
    assert "default-src 'none'" in text
    assert {*FIGURES, "Scores"} <= {*page.titles} and all(image["alt"] for image in page.images)
    assert len(page.images) == len(all_figures(two))
    assert "cvxrl compare &#x27;a&lt;b&gt;&#x27;" in text
    assert "not met, left side is 0.8" in text and "1 diverged or failed runs count as 0" in text
    for address in page.addresses:
        svg = ElementTree.fromstring(base64.b64decode(address.split(",", 1)[1]))
        assert svg.tag.endswith("svg")
    monkeypatch.setattr("cvxrl.comparison.figures.gallery.GALLERY", GALLERY[:1])  # one is enough, to be drawn thrice
    assert to_html_page(two, gates, command) == to_html_page(two, gates, command)


def test_a_sweep_has_a_sensitivity_figure(sweep: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvxrl.report.figure.to_svg", lambda _: b"<svg/>")  # which are drawn, not how
    page = Page(to_html_page(sweep, [], "x"))
    assert {*FIGURES, "Sensitivity"} <= {*page.titles} and len(page.images) == len(all_figures(sweep))


def test_curves_show_seeds_mean_and_divergence(two: Comparison) -> None:
    (axis,) = learning_curves(two).axes
    named = {line.get_label(): line for line in axis.lines}
    assert list(named["math_grpo (3 seeds)"].get_ydata()) == pytest.approx([0.4, 0.6, 0.8])
    # The diverged seed pulls the mean down instead of leaving it: (0.8 + 0.9 + 0) / 3.
    assert list(named["math_lco_kld (3 seeds)"].get_ydata())[-1] == pytest.approx(1.7 / 3)
    assert len([line for line in axis.lines if line.get_linewidth() == 0.6]) == 6
    (cross,) = [line for line in axis.lines if line.get_marker() == "x"]
    assert (list(cross.get_xdata()), list(cross.get_ydata())) == ([2], [0.6])
    assert axis.get_xlabel() == "step" and axis.get_ylabel() == "eval/accuracy"
    assert len(axis.collections) == 2  # a band each


def test_a_dead_run_has_no_gradient_norm(two: Comparison) -> None:
    strand = panels(two)[0].strands[1]
    _, score_NT = on_grid(strand, "eval/accuracy", two.options)
    assert score_NT[2, -1] == 0.0
    _, norm_NT = stack([run.series("grad/norm") for run in strand.group.runs])
    assert np.isnan(norm_NT[2, -1]) and norm_NT[0, -1] == 1.0
    assert {axis.get_yscale() for axis in stability_curves(two).axes} == {"log"}


def test_stacking_interpolates_inside_and_never_outside() -> None:
    steps, values = stack(
        [Series(np.array([0.0, 4.0]), np.array([0.0, 1.0])), Series(np.array([2.0]), np.array([9.0]))]
    )
    assert list(steps) == [0, 2, 4] and list(values[0]) == [0, 0.5, 1]
    assert values[1][1] == 9 and np.isnan(values[1][[0, 2]]).all()
    assert stack([])[0].shape == (0,)


def test_long_runs_are_thinned_and_keep_their_spikes() -> None:
    steps, values = np.arange(2500.0), np.ones((1, 2500))
    values[0, 1234] = 50.0
    thin_T, peak_NT = thin(steps, values, np.nanmax)
    assert len(thin_T) == 500 and thin_T[-1] == 2499 and peak_NT.max() == 50.0 and peak_NT.sum() == 549
    assert len(thin(steps[:500], values[:, :500], np.nanmax)[0]) == 500


def test_a_curve_is_seen_below_one_that_covers_it(tmp_path: Path) -> None:
    for recipe in (GRPO, "math_reinforce", LCO):
        make_seeds(tmp_path, recipe, [0.7, 0.8])
    for figure in (learning_curves(compare(tmp_path)), stability_curves(compare(tmp_path))):
        for axis in figure.axes:
            named = [line for line in axis.lines if not str(line.get_label()).startswith("_")]
            widths = [line.get_linewidth() for line in named]
            assert len(widths) == 3 and widths == sorted(set(widths), reverse=True)


def test_seeds_of_many_methods_are_not_drawn_one_over_another(two: Comparison, tmp_path: Path) -> None:
    make_seeds(tmp_path / "more", "math_reinforce", [0.7, 0.8])
    counts = [len(stability_curves(c).axes[1].lines) for c in (two, compare(tmp_path))]
    assert counts[0] > 2 and counts[1] == 3


def test_profiles_are_staircases(two: Comparison) -> None:
    (axis,) = performance_profiles(two).axes
    line = axis.lines[0]
    at = dict(zip(line.get_xdata(), line.get_ydata(), strict=True))
    assert at[0.7] == pytest.approx(2 / 3) and at[0.9] == 0 and line.get_drawstyle() == "steps-post"


def test_sensitivity_is_on_a_log_axis_and_no_method_hides_another(sweep: Comparison) -> None:
    figure = sensitivity_curves(sweep)
    assert figure is not None
    scores, ranges = figure.axes
    assert scores.get_xscale() == ranges.get_xscale() == "log"
    first, second = (line for line in scores.lines if line.get_label() in (GRPO, LCO))
    assert (np.asarray(second.get_xdata()) / np.asarray(first.get_xdata())).min() > 1.01


def test_one_method_has_no_pair_to_draw(tmp_path: Path) -> None:
    make_seeds(tmp_path, GRPO, [0.7, 0.8])
    c = compare(tmp_path)
    assert improvement_intervals(c) is None and sensitivity_curves(c) is None
    shown = {figure.title for figure in all_figures(c)}
    assert {*FIGURES} - shown == {"Against the baseline"} and "Sensitivity" not in shown


def test_a_figure_is_a_function_and_an_entry_in_the_gallery(two: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    def lengths(c: Comparison) -> Figure:
        figure, ((axis,),) = new_figure(1, 1, 2.0)
        axis.bar([s.label for s in c.summaries], [len(s.scores) for s in c.summaries])
        return figure

    entry = ("Seeds", lengths, "Scored seeds of {metric}.")
    monkeypatch.setattr("cvxrl.comparison.figures.gallery.GALLERY", [entry])
    text = to_html_page(two, [], "x")
    assert "Seeds" in Page(text).titles and "Scored seeds of eval/accuracy." in text
    assert {"seeds.svg", "seeds.png"} <= figure_files(two).keys()


def test_every_figure_is_in_the_documentation() -> None:
    page = (ROOT / "docs" / "compare.md").read_text()
    assert not [title for title, _, _ in GALLERY if f"| {title} |" not in page]


def test_many_methods_stay_apart() -> None:
    styles = [method_style(i) for i in range(28)]
    assert len({(colour, dash) for colour, dash, _ in styles}) == 28


def test_an_svg_does_not_depend_on_when_or_where(two: Comparison) -> None:
    assert to_svg(learning_curves(two)) == to_svg(learning_curves(two))


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_shows_the_page(two: Comparison, width: int, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(to_html_page(two, [], "cvxrl compare"), encoding="utf-8")
    with opened(file, width) as page:
        pictures = page.eval_on_selector_all("img", "all => all.map(i => [i.complete, i.naturalWidth, i.clientWidth])")
        overflow = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        tables = page.locator("table").count()
    assert len(pictures) >= 5 and all(done and natural > 300 and shown > 300 for done, natural, shown in pictures)
    assert overflow <= 0  # wide tables scroll inside their own box
    assert tables == 6
