"""A report as Markdown, on the terminal and as a page: what is text stays text."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

from cvxrl.report.document import Page, Table, print_report, to_html, to_markdown
from cvxrl.report.figure import Shown, new_figure

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
