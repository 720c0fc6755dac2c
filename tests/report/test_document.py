"""A report as Markdown, on the terminal and as a page: what is text stays text."""

from __future__ import annotations

import io

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from cvxrl.report.document import Page, Table, print_report, to_html, to_markdown
from cvxrl.report.figure import Shown, new_figure, step_axis, to_file

TABLE = Table("A <b> title", ("<name", "number"), [["a|b\nc", "1"], ["[bold]d", "<2"]], "How & why.")


def figure() -> Figure:
    made, ((axis,),) = new_figure(1, 1, 1.0)
    axis.plot([0, 1], [0, 1])
    return made


def test_markdown_keeps_its_columns() -> None:
    assert to_markdown(TABLE).splitlines() == [
        "### A <b> title",
        "",
        "| name | number |",
        "| :-- | --: |",
        "| a\\|b c | 1 |",
        "| [bold]d | <2 |",
        "",
        "How & why.",
    ]


def test_a_page_escapes_what_it_is_given() -> None:
    page = Page("<title>", "cvxrl compare 'a<b>'")
    page.note("n <1>")
    page.warning("w & w")
    page.problem("p\n    -> r")
    page.section("s <1>", "x < y", ["one <i>", "two"])
    page.table(TABLE)
    page.figure(Shown("Fig <1>", figure(), "It's a line."))
    text = page.html()
    for words in (
        "<title>&lt;title&gt;</title>",
        "<p class='note'>n &lt;1&gt;</p>",
        "<p class='warning'>w &amp; w</p>",
        "<p class='problem'>p\n    -&gt; r</p>",
        "<h2>s &lt;1&gt;</h2>\n<pre>x &lt; y</pre>\n<ul><li>one &lt;i&gt;</li><li>two</li></ul>",
        to_html(TABLE),
        "alt='Fig &lt;1&gt;: It&#x27;s a line.' src='data:image/svg+xml;base64,",
    ):
        assert words in text
    assert text.index("class='note'") < text.index("<table>") < text.index("<img") and text.endswith("</html>\n")


def test_a_pipe_gets_eighty_columns_without_markup() -> None:
    stream = io.StringIO()
    print_report(["before [x]"], [TABLE], ["after"], stream)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "before [x]" and lines[-1] == "after" and any("[bold]d" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_a_figures_file_is_named_by_its_title() -> None:
    assert Shown("Against the baseline", figure(), "").slug == "against_the_baseline"


def test_a_figure_is_narrow_enough_to_be_read_in_a_column() -> None:
    """At 80 mm no letter is smaller than 5 points."""
    made = figure()
    shrunk = 80 / 25.4 / made.get_figwidth()
    made.canvas.draw()
    sizes = [text.get_fontsize() for text in made.findobj(Text) if text.get_text()]
    assert len(sizes) > 4 and min(sizes) * shrunk > 5.0


@pytest.mark.parametrize(("suffix", "head"), [(".pdf", b"%PDF"), (".svg", b"<?xml"), (".png", bytes([0x89]) + b"PNG")])
def test_a_files_ending_decides_on_its_form(suffix: str, head: bytes) -> None:
    first, second = (to_file(figure(), suffix) for _ in range(2))
    assert first.startswith(head) and first == second


@pytest.mark.parametrize("last", [5, 1, 3])
def test_steps_have_ticks_at_whole_numbers(last: int) -> None:
    made, ((axis,),) = new_figure(1, 1, 2.0)
    axis.plot([0, last], [0, 1])
    step_axis(axis)
    made.canvas.draw()
    assert all(float(tick).is_integer() for tick in axis.get_xticks())


def test_a_verdict_stands_beside_the_names_on_a_page() -> None:
    table = Table("t", ("<name", "x", "<verdict"), [["a", "1", "better than all others by a wide margin"]])
    assert to_html(table).index("verdict") < to_html(table).index(">x<")
    assert to_html(TABLE).index("name") < to_html(TABLE).index("number")


@pytest.mark.parametrize(
    "label", ["grpo", "my_package.losses:weighted_lco", "a_recipe_whose_name_is_longer_than_thirty_letters"]
)
def test_neither_numbers_nor_words_are_broken_at_eighty_columns(label: str) -> None:
    columns = ("<step", "<objective", "<finding", *(f"column {i}" for i in range(9)))
    row = ["12000", label, "overshoots its step", *(f"+{i}.5e-03 ± 2e-05" for i in range(9))]
    stream = io.StringIO()
    print_report([], [Table("Wide", columns, [row], "A note.")], [], stream)
    text = stream.getvalue()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for cell in row[3:]:
        assert cell in text
    assert "overshoots" in text and text.count("A note.") == 1
    headers = [line for line in lines if line.startswith("step")]
    assert len(headers) > 1  # dealt out to blocks that begin with the same names
    assert all(name in " ".join(headers) for name in columns[3:])
