"""How numbers are written in tables."""

from __future__ import annotations

from cvxrl.stats.bootstrap import Interval

NOTHING = "-"


def number(value: float | None) -> str:
    """Three decimals for ordinary sizes, scientific or whole otherwise; `-` where there is none."""
    if value is None:
        return NOTHING
    size = abs(value)
    if value == int(value) and size >= 10:
        return f"{value:,.0f}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if size >= 0.001 or size == 0 else f"{value:.1e}"


def short(value: float | None, digits: int = 3) -> str:
    """A few significant digits."""
    return NOTHING if value is None else f"{value:.{digits}g}"


def signed(value: float | None) -> str:
    """With its sign, as differences are."""
    return NOTHING if value is None else f"{value:+.3f}"


def span(interval: Interval | None, sign: bool = False, decimals: int = 3) -> str:
    """`[low, high]`; empty where there is none."""
    if interval is None:
        return ""
    plus = "+" if sign else ""
    return f"[{interval.low:{plus}.{decimals}f}, {interval.high:{plus}.{decimals}f}]"


def p_value(value: float | None) -> str:
    """Three decimals, and never zero."""
    return NOTHING if value is None else "<.001" if value < 0.001 else f"{value:.3f}"


def count(value: float | None) -> str:
    """Large counts with a unit: 481838 is 482k."""
    if value is None:
        return NOTHING
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"
