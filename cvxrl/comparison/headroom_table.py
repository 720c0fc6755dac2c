"""Headroom of the methods as a table: where half the seeds fail, and how that compares with the baseline."""

from __future__ import annotations

from math import inf

from cvxrl.comparison.headroom import Headroom, HeadroomPair
from cvxrl.comparison.result import Comparison
from cvxrl.report.document import Table
from cvxrl.report.format import NOTHING, short
from cvxrl.stats.bootstrap import Interval

HALF_FAIL = (
    "Half fail: probit curve over the logarithm, interval by profile likelihood; < and > mark ends beyond the tried "
    "values."
)
_NEEDS = "needs 2 seeds\nat each value"


def headroom_table(c: Comparison) -> Table:
    """One row per method; no end of an interval is a number that lies beyond the tried values."""
    pairs = {pair.method: pair for pair in c.headroom_pairs}
    percent = f"{100 * c.options.confidence:g}%"
    against = f"<over {c.headroom_pairs[0].baseline}" if c.headroom_pairs else "<over baseline"
    rows = [
        [h.method, half_text(h), short(h.best), headroom_text(h), *_against(pairs.get(h.method))] for h in c.headrooms
    ]
    return Table(
        f"Headroom: {c.options.varied} at which half the seeds fail, over the best",
        ["<method", f"<half fail at\n{percent} interval", "best", "<headroom", against, "<verdict"],
        rows,
        f"{HALF_FAIL} Best: tried value with the largest mean score; the interval of the headroom counts that it is "
        "chosen on these seeds. Those over the baseline hold for all comparisons together.",
    )


def half_text(h: Headroom) -> str:
    """`0.0031` and `[0.001, > 0.01]`: with the last tried value where the truth may be beyond it."""
    first, last = h.trials[0].value, h.trials[-1].value
    if h.half is None and h.beyond is None:
        return "failures fall,\nnot known"
    point = short(h.half) if h.half is not None else f"> {last:g}" if h.beyond == "above" else f"< {first:g}"
    low = short(h.half_interval.low, 2) if h.half_interval.low > 0 else f"< {first:g}"
    high = short(h.half_interval.high, 2) if h.half_interval.high < inf else f"> {last:g}"
    if (high.startswith(">") and low == short(last, 2)) or (low.startswith("<") and high == short(first, 2)):
        return f"{point}\n[{point}]"  # nothing else is plausible
    return f"{point}\n[{low}, {high}]"


def headroom_text(h: Headroom) -> str:
    """`x3.2` and `[x1.5, x8]`."""
    if h.best is None or (h.half is None and h.beyond is None):
        return NOTHING
    if h.headroom is not None:
        point = factor(h.headroom)
    else:
        bound = (h.trials[-1] if h.beyond == "above" else h.trials[0]).value / h.best
        point = f"{'>' if h.beyond == 'above' else '<'} {factor(bound)}"
    return f"{point}\n{factor_span(h.headroom_interval)}" if h.headroom_interval else f"{point}\n{_NEEDS}"


def factor_span(interval: Interval) -> str:
    """`[x1.5, x8]`, `x1.5 or more`, `x8 or less`, or that nothing is known."""
    if interval.low <= 0:
        return "not known" if interval.high == inf else f"{factor(interval.high)} or less"
    low = factor(interval.low)
    return f"{low} or more" if interval.high == inf else f"[{low}, {factor(interval.high)}]"


def _against(pair: HeadroomPair | None) -> list[str]:
    if pair is None:
        return ["", ""]
    ratio = NOTHING if pair.ratio is None else factor(pair.ratio)
    if pair.ratio_interval is not None:
        known = factor_span(pair.ratio_interval)
        ratio = known if pair.ratio is None else f"{ratio}\n{known}"
    return [ratio, pair.verdict]


def factor(value: float) -> str:
    """Two digits, or all that stand before the point."""
    return f"x{value:,.0f}" if value >= 99.5 else f"x{value:.2g}"
