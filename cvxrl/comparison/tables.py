"""A comparison as tables."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cvxrl.comparison.group import settings, show_value
from cvxrl.comparison.headroom_table import headroom_table
from cvxrl.comparison.map_tables import map_tables
from cvxrl.comparison.outcome import FAILURES
from cvxrl.comparison.pair import FEWEST, Pair
from cvxrl.comparison.result import Comparison
from cvxrl.comparison.sensitivity import TOLERANCE, Point, Sensitivity
from cvxrl.comparison.summary import GroupSummary, RunRow, over
from cvxrl.report.document import Table
from cvxrl.report.format import NOTHING, count, fixed, number, p_value, share, short, signed, span, whole


def all_tables(c: Comparison) -> list[Table]:
    """Every table that has something to say, in reading order."""
    made = [scores_table(c), pairs_table(c), runs_table(c), speed_table(c), stability_table(c)]
    made += [sensitivity_table(c), headroom_table(c), *map_tables(c), factors_table(c)]
    return [table for table in made if table.rows]


def scores_table(c: Comparison) -> Table:
    """Mean with interval, interquartile mean, worst seed, and failures with theirs."""
    percent, worst = f"{100 * c.options.confidence:g}%", "worst" if c.options.higher_is_better else "lowest"
    rows = [
        [
            *_name(c, s),
            str(len(s.scores)),
            number(s.mean),
            span(s.intervals.get("mean")) or NOTHING,
            number(s.iqm),
            number(s.worst),
            f"{s.failures} of {len(s.rows)}" if s.rows else NOTHING,
            span(s.failure_interval, decimals=2) or NOTHING,
        ]
        for s in c.summaries
    ]
    return Table(
        f"Final {c.options.metric}, over training seeds",
        [*_name_columns(c), "seeds", "mean", f"<{percent}\nof mean", "IQM", worst, "failed", f"<{percent}\nof share"],
        rows,
        "IQM: mean of the middle half, which hides failures. Intervals: of the mean, bootstrap over seeds stretched "
        "for their small number; of the share of runs that fail, Clopper and Pearson's.",
    )


def pairs_table(c: Comparison) -> Table:
    """Differences from the baseline and verdicts."""
    percent = f"{100 * c.options.confidence:g}%"
    better = "better" if c.options.higher_is_better else "higher"
    bases = {c.summary(pair.baseline).method if c.options.vary else pair.baseline for pair in c.pairs}
    own = c.options.vary and len({p.baseline for p in c.pairs}) > 1
    return Table(
        f"Against {', '.join(sorted(bases))}{f' at the same {c.options.varied}' if own else ''}",
        [
            *_name_columns(c),
            f"<difference\n{percent} interval",
            f"<P({better})\n{percent} interval",
            "p",
            "p, all",
            "<verdict",
        ],
        [
            [
                *_name(c, c.summary(pair.label)),
                f"{signed(pair.difference)}\n{span(pair.difference_interval, sign=True)}".rstrip(),
                f"{fixed(pair.improvement, 2)}\n{span(pair.improvement_interval, decimals=2)}".rstrip(),
                p_value(pair.p_value),
                p_value(pair.p_adjusted),
                verdict(pair),
            ]
            for pair in c.pairs
        ],
        "Difference of the means, by Student's t; seeds that both ran count as pairs. p, all: times the number of "
        "comparisons, for which the intervals are wide enough too.",
    )


def verdict(pair: Pair) -> str:
    """The verdict in words, with the seeds it rests on."""
    fewest = min(pair.seeds, pair.baseline_seeds)
    seeds = f"{fewest} seed{'' if fewest == 1 else 's'}"
    if pair.verdict == "unfinished":
        return "unfinished: no verdict yet"
    if pair.verdict == "no verdict":
        why = f"needs {FEWEST}" if fewest < FEWEST else "nothing varies, or runs left out"
        return f"no verdict with {seeds}: {why}"
    if pair.verdict != "not resolved":
        return f"{pair.verdict}, {seeds}"
    least = "" if pair.seeds_needed is None else f": {pair.seeds_needed:,} or more"
    return f"not resolved by {seeds}; how many would cannot be told{least}"


def runs_table(c: Comparison) -> Table:
    """How runs ended."""
    rows = [
        [*_name(c, s), *map(str, (s.run, s.finished, *(s.kinds[kind] for kind in FAILURES), s.unlearned, s.unfinished))]
        for s in c.summaries
    ]
    note = (
        f"Fell: ended below {c.options.collapse:g} of the best level (--collapse). Harmed: an evaluation below the "
        "first. Unlearned: none above it; no failure. All beyond what the evaluations' error explains."
    )
    return Table("Runs", [*_name_columns(c), "run", "finished", *FAILURES, "unlearned", "unfinished"], rows, note)


def speed_table(c: Comparison) -> Table:
    """Area under the curve, steps and tokens to the threshold, time."""
    if c.options.threshold is None:
        return _area_table(c)
    rows = []
    for s in c.summaries:
        ended = len(s.rows)
        steps = number(s.reached.steps) if s.reached.steps is not None else "not reached" if ended else NOTHING
        reached = [f"{s.reached.count}/{ended}", steps, count(s.reached.tokens)]
        rows.append([*_name(c, s), number(s.area), *reached, whole(s.seconds)])
    return Table(
        f"Speed: {c.options.metric} up to {number(c.options.threshold)}",
        [*_name_columns(c), "area", "reached", "steps", "tokens", "time [s]"],
        rows,
        "Area: mean height of the curve. Steps, tokens: median over runs to the first evaluation at or above the "
        "threshold, runs that never reach it counting as longest. Time: of training steps, median.",
    )


def _area_table(c: Comparison) -> Table:
    """The same where no threshold is stated."""
    rows = [[*_name(c, s), number(s.area), whole(s.seconds)] for s in c.summaries]
    note = "Area: mean height of the curve. With --threshold, also the steps and tokens to it."
    return Table(f"Speed: {c.options.metric}", [*_name_columns(c), "area", "time [s]"], rows, note)


def stability_table(c: Comparison) -> Table:
    """Gradient norms, KL, entropy, drops."""

    def typical(s: GroupSummary, of: Callable[[RunRow], float | None], digits: int = 3) -> str:
        return short(over(s.rows, of, np.median), digits)

    rows = []
    for s in c.summaries:
        entropy = [typical(s, of, 2) for of in (_entropy_start, _entropy_end)]
        rows.append(
            [
                *_name(c, s),
                typical(s, lambda r: r.stability.grad_p50),
                short(over(s.rows, lambda r: r.stability.grad_ratio, np.max)),
                share(over(s.rows, lambda r: r.stability.spike_share, np.mean)),
                typical(s, lambda r: r.stability.kl_p99),
                NOTHING if entropy == [NOTHING] * 2 else ">".join(entropy),
                number(over(s.rows, lambda r: r.score.largest_drop, np.max)),
                short(over(s.rows, lambda r: r.outcome.step, np.median)),
            ]
        )
    return Table(
        "Stability",
        [
            *_name_columns(c),
            *("grad\np50", "largest\n/ median", f"above\nx{c.options.spike:g}", "KL p99\n[nats]", "entropy\n[nats]"),
            *("largest\ndrop", "failed\nat step"),
        ],
        rows,
        "Gradient norm before clipping: median over seeds; largest ratio to the median of the 20 norms before, over "
        "all seeds; share of norms above a multiple of it (--spike). Drop: largest. Step: median over failed runs.",
    )


def sensitivity_table(c: Comparison) -> Table:
    """Mean score at every value of the varied key, failures marked, and the width of the good range."""
    values = sorted({p.value for s in c.sensitivities for p in s.points})
    rows = []
    for s in c.sensitivities:
        at = {p.value: p for p in s.points}
        rows.append([s.method, *(_point(at.get(v)) for v in values), good_range(s)])
    return Table(
        f"Mean {c.options.metric} against {c.options.varied}",
        ["<method", *(f"{v:g}" for v in values), f"<within {TOLERANCE:.0%}\nof best"],
        rows,
        "! n: failed runs. Last column: unbroken range of tried values within 10% of the best, its "
        "width as a factor; >= where the best range ends at a value that was the last one tried.",
    )


def good_range(s: Sensitivity) -> str:
    """`0.0001 to 0.001, x10`."""
    span_text = f"{s.low:g} to {s.high:g}" if s.low != s.high else f"{s.low:g}"
    open_end = ">=" if s.open_low or s.open_high else ""
    return f"{span_text}\n{open_end}x{s.ratio:.3g}" if s.ratio is not None else span_text


def factors_table(c: Comparison) -> Table:
    """Recipe keys in which methods differ: every value with the methods that have it."""
    rows = []
    for factor in c.factors:
        if factor.key in c.options.vary:
            continue
        have: dict[str, list[str]] = {}
        for s in c.summaries:
            if s.label not in factor.values:
                continue  # its recipe is not known
            value = factor.values[s.label]
            methods = have.setdefault(NOTHING if value is None else show_value(value), [])
            methods += [] if s.method in methods else [s.method]
        for index, (value, methods) in enumerate(have.items()):
            mark = "" if factor.declared else " (undeclared)"
            rows.append(["" if index else factor.key + mark, value, ", ".join(methods)])
    return Table("What differs between the recipes", ["<key", "value", "<methods"], rows)


def _point(point: Point | None) -> str:
    if point is None:
        return NOTHING
    return number(point.mean) + (f"\n! {point.failures}" if point.failures else "")


def _name_columns(c: Comparison) -> list[str]:
    keys = [key.split(".")[-1] for key in c.options.vary]
    return ["<method", ",\n".join(keys)] if keys else ["<method"]


def _name(c: Comparison, s: GroupSummary) -> list[str]:
    values = [NOTHING if value is None else show_value(value) for value in settings(s.value)]
    return [s.method, ", ".join(values)] if c.options.vary else [s.method]


def _entropy_start(row: RunRow) -> float | None:
    return row.stability.entropy_start


def _entropy_end(row: RunRow) -> float | None:
    return row.stability.entropy_end
