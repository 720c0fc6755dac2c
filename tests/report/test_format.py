"""How numbers are written: the same digits in every table and on every page."""

from __future__ import annotations

import math

import pytest

from cvxrl.report.format import (
    clock,
    count,
    fixed,
    number,
    p_value,
    percent,
    scientific,
    share,
    short,
    signed,
    size,
    span,
    to_error,
    whole,
    with_error,
)
from cvxrl.stats.bootstrap import Interval


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (number(0.5), "0.500"),
        (number(0.0), "0.000"),
        (number(12.0), "12"),
        (number(1234.5), "1,234"),
        (number(0.00012), "1.2e-04"),
        (fixed(0.25, 2), "0.25"),
        (short(0.123456), "0.123"),
        (short(1234567.0, 2), "1.2e+06"),
        (signed(0.1), "+0.100"),
        (signed(-0.123, 2), "-0.12"),
        (scientific(0.0012), "1.2e-03"),
        (scientific(0.0012, 0, sign=True), "+1e-03"),
        (whole(1234.4), "1,234"),
        (percent(0.1234), "12.3%"),
        (percent(1.0), "100.0%"),
        (share(1.0), "100%"),
        (share(0.0), "0%"),
        (share(0.0001), "0.0%"),
        (with_error(0.4634, 0.0172), "0.463 ± 0.017"),
        (to_error(32.34103, 6e-5), "32.34103 ± 6e-05"),
        (to_error(-0.215678, 0.0213), "-0.216 ± 0.02"),
        (to_error(30.149, 3.7), "30 ± 4"),
        (to_error(0.0, 2e-9), "0.0 ± 2e-09"),
        (to_error(5.0, 0.0), "5.0000000 ± 0"),
        (with_error(0.4634, None), "0.463"),
        (with_error(0.4634, math.nan, "why"), "0.463 (why)"),
        (span(Interval(-0.1, 0.25), sign=True), "[-0.100, +0.250]"),
        (span(Interval(0.1, 0.25), decimals=2), "[0.10, 0.25]"),
        (p_value(0.0001), "<.001"),
        (p_value(0.05), "0.050"),
        (count(481_838), "482k"),
        (count(12), "12"),
        (clock(3725.4), "1:02:05"),
        (size(3 * 2**30), "3.0 GiB"),
        (size(12), "12 B"),
        (size(5e15), "4,547.5 TiB"),
    ],
)
def test_written(written: str, expected: str) -> None:
    assert written == expected


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_written_as_it_is(value: float) -> None:
    for write in (number, fixed, short, count, clock):
        assert write(value) == str(value)
    assert to_error(value, 0.1).startswith(str(value)) and to_error(0.5, abs(value)).startswith("0.5")
    assert signed(value).lstrip("+") == str(value) and percent(value).startswith(str(value))
    assert str(value) in (whole(value), scientific(value), p_value(value)) and size(value)


def test_a_missing_number_is_a_dash_and_a_missing_interval_nothing() -> None:
    writers = (number, fixed, short, signed, scientific, whole, percent, share, p_value, count)
    assert {write(None) for write in writers} == {"-"}
    assert span(None) == ""
