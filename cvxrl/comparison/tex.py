"""The main table of a comparison in LaTeX, for a paper: scores, failures, and differences from the baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cvxrl.comparison.group import settings, show_value
from cvxrl.comparison.pair import Pair
from cvxrl.comparison.result import Comparison
from cvxrl.comparison.summary import GroupSummary
from cvxrl.report.format import number, p_value, signed
from cvxrl.stats.bootstrap import Interval

_NOTHING = "--"
_NEEDS = "% needs \\usepackage{booktabs}\n"
# In one pass, so that what an escape is written with is not escaped again.
_ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': r"\textquotedbl{}",
    }
)


def to_tex(tables: Sequence[tuple[str, Comparison]], command: str) -> str:
    """A file for a paper to include: a `table` for each comparison, under a comment with the command that made it.

    Args:
        tables: what stands in front of each caption, which may be nothing, and the comparison.
        command: as it was typed.
    """
    first = "% " + " ".join(command.split()) + "\n"
    return first + _NEEDS + "\n".join(main_table(c, heading) for heading, c in tables)


def main_table(c: Comparison, heading: str = "") -> str:
    """One method a row; intervals behind their numbers, `--` where there is none."""
    pairs = {pair.label: pair for pair in c.pairs}
    names = ["Method", *(escape(key) for key in c.options.vary)]
    worst = "Worst" if c.options.higher_is_better else "Lowest"
    columns = [*names, "Seeds", "Mean", "IQM", worst, "Failed", *(["Difference", "$p$"] if pairs else [])]
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_caption(c, heading)}}}",
        rf"\begin{{tabular}}{{{'l' * len(names)}{'r' * (len(columns) - len(names))}}}",
        r"\toprule",
        _row(columns),
        r"\midrule",
        *(_row(list(_cells(c, s, pairs.get(s.label), bool(pairs)))) for s in c.summaries),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def escape(text: str) -> str:
    """Text as LaTeX shows it."""
    return text.translate(_ESCAPES)


def _cells(c: Comparison, s: GroupSummary, pair: Pair | None, compared: bool) -> Iterator[str]:
    yield escape(s.method)
    if c.options.vary:
        yield from (_NOTHING if value is None else escape(show_value(value)) for value in settings(s.value))
    yield str(len(s.scores))
    yield _with_interval(_math(number(s.mean)), s.intervals.get("mean"))
    yield _math(number(s.iqm))
    yield _math(number(s.worst))
    yield f"{s.failures} of {len(s.rows)}" if s.rows else _NOTHING
    if compared:
        yield _NOTHING if pair is None else _with_interval(_math(signed(pair.difference)), pair.difference_interval)
        yield _NOTHING if pair is None else _math(p_value(pair.p_adjusted))


def _caption(c: Comparison, heading: str) -> str:
    """What the numbers are, in whole sentences: a reader of the paper has no help to turn to."""
    percent = f"{100 * c.options.confidence:g}\\%"
    parts = [
        f"{escape(heading)}: " if heading else "",
        f"Final {escape(c.options.metric)} over training seeds. In brackets, {percent} intervals of the mean "
        "(bootstrap over seeds). IQM: mean of the middle half. Failed: runs that broke off, fell or were harmed.",
    ]
    if c.pairs:
        bases = ", ".join(sorted({escape(c.summary(pair.baseline).label) for pair in c.pairs}))
        parts.append(
            f" Difference of the means from {bases}, with its interval and $p$ by Student's $t$, for all comparisons "
            "together."
        )
    return "".join(parts)


def _with_interval(value: str, interval: Interval | None) -> str:
    return value if interval is None else f"{value} $[{interval.low:.3f}, {interval.high:.3f}]$"


def _math(text: str) -> str:
    """A number as mathematics, whose minus is one; `1.2e-05` as a power of ten."""
    if text == "-":
        return _NOTHING
    mantissa, e, exponent = text.replace(",", "{,}").partition("e")
    power = rf" \times 10^{{{int(exponent)}}}" if e else ""
    return f"${mantissa}{power}$"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"
