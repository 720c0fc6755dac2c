"""How numbers are written, in tables, on the terminal and on pages: the only place that decides on digits."""

from __future__ import annotations

import math

from cvxrl.stats.bootstrap import Interval

NOTHING = "-"
# Said beside an accuracy of a single question: its error is the spread over questions.
NO_ERROR = "error needs 2 prompts"


def number(value: float | None) -> str:
    """Three decimals for ordinary sizes, scientific or whole otherwise; `-` where there is none."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return f"{value}"
    size = abs(value)
    if value == int(value) and size >= 10:
        return f"{value:,.0f}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if size >= 0.001 or size == 0 else f"{value:.1e}"


def short(value: float | None, digits: int = 3) -> str:
    """A few significant digits."""
    return NOTHING if value is None else f"{value:.{digits}g}"


def fixed(value: float | None, decimals: int = 3) -> str:
    """As many decimals, whatever the size."""
    return NOTHING if value is None else f"{value:.{decimals}f}"


def signed(value: float | None, decimals: int = 3) -> str:
    """With its sign, as differences are."""
    return NOTHING if value is None else f"{value:+.{decimals}f}"


def scientific(value: float | None, decimals: int = 1, sign: bool = False) -> str:
    """`1.2e-05`, for what spans orders of magnitude."""
    return NOTHING if value is None else f"{value:{'+' if sign else ''}.{decimals}e}"


def whole(value: float | None) -> str:
    """Without decimals, thousands apart: `1,234`."""
    return NOTHING if value is None else f"{value:,.0f}"


def percent(value: float | None, decimals: int = 1) -> str:
    """A share in percent: 0.1234 is `12.3%`."""
    return NOTHING if value is None else f"{100 * value:.{decimals}f}%"


def share(value: float | None) -> str:
    """A share in percent that shows whether it is exactly none or all: `0%` and `0.0%` differ."""
    return percent(value, 0 if value in (0, 1) else 1)


def is_known(error: float | None) -> bool:
    """Whether there is an error: a single question has none, which files hold as null and records as NaN."""
    return error is not None and error - error == 0


def with_error(value: float, error: float | None, missing: str = "", decimals: int = 3) -> str:
    """`0.463 ± 0.017`; without an error the number alone, and `missing` in brackets behind it."""
    if is_known(error):
        return f"{value:.{decimals}f} ± {error:.{decimals}f}"
    return f"{value:.{decimals}f}{f' ({missing})' if missing else ''}"


def to_error(value: float, error: float) -> str:
    """`32.34103 ± 6e-05`: as many digits as the error leaves certain and one more, two to eight of them."""
    if not math.isfinite(value) or not math.isfinite(error):
        return f"{value:g} ± {error:g}"
    certain = math.floor(math.log10(abs(value) / error)) if value and error else 7 if not error else 0
    digits = min(max(certain + 2, 2), 8)
    return f"{f'{value:#.{digits}g}'.removesuffix('.')} ± {error:.1g}"


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
    if not math.isfinite(value):
        return f"{value}"
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:g}"


def size(count: float) -> str:
    """Bytes with a binary unit: 3221225472 is `3.0 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:,.1f} TiB"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: 3725 is `1:02:05`."""
    if not math.isfinite(seconds):
        return f"{seconds}"
    rounded = int(seconds + 0.5)
    return f"{rounded // 3600}:{rounded // 60 % 60:02d}:{rounded % 60:02d}"
