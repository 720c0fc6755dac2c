"""The table for a paper: the numbers of the comparison, every row as wide as the heading, nothing that LaTeX reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from made_runs import make_run, make_seeds

from cvxrl.comparison.options import Options
from cvxrl.comparison.result import Comparison, build
from cvxrl.comparison.sources import read_runs
from cvxrl.comparison.tex import escape, main_table, to_tex


@pytest.fixture
def compared(tmp_path: Path) -> Comparison:
    paths = make_seeds(tmp_path, "math_grpo", [0.5, 0.6, 0.7, 0.6]) + make_seeds(
        tmp_path, "math_lco_kld", [0.8, 0.9, 0.85]
    )
    paths += [make_run(tmp_path, "math_lco_kld", 3, (0.4, 0.5, 0.6), status="diverged", diverged_at=2)]
    runs, problems = read_runs(paths)
    assert not problems
    return build(runs, Options())


def rows(text: str) -> list[list[str]]:
    return [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in text.splitlines() if line.endswith(r"\\")]


def test_the_table_has_the_numbers_of_the_comparison(compared: Comparison) -> None:
    heading, grpo, lco = rows(main_table(compared))
    assert heading == ["Method", "Seeds", "Mean", "IQM", "Worst", "Failed", "Difference", "$p$"]
    summary, pair = compared.summary("math_lco_kld"), compared.pairs[0]
    interval, difference = summary.intervals["mean"], pair.difference_interval
    assert summary.mean is not None and difference is not None and pair.difference is not None
    assert lco[0] == r"math\_lco\_kld" and lco[1] == "4" and lco[5] == "1 of 4"
    assert lco[2] == f"${summary.mean:.3f}$ $[{interval.low:.3f}, {interval.high:.3f}]$"
    assert lco[6] == f"${pair.difference:+.3f}$ $[{difference.low:.3f}, {difference.high:.3f}]$"
    assert grpo[5] == "0 of 4" and grpo[6:] == ["--", "--"], "the baseline is not compared with itself"


def test_the_file_says_what_it_needs_and_its_braces_match(compared: Comparison) -> None:
    text = to_tex([("once_more", compared), ("", compared)], "cvxrl compare a\nb --tex t.tex")
    assert text.startswith("% cvxrl compare a b --tex t.tex\n% needs \\usepackage{booktabs}\n\\begin{table}")
    bare = re.sub(r"\\[\\{}%&_]", "", text)
    assert bare.count("{") == bare.count("}") and bare.count("$") % 2 == 0
    assert text.count(r"\begin{tabular}{lrrrrrrr}") == text.count(r"\end{tabular}") == 2
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert text.count(rule) == 2
    assert r"\caption{once\_more: Final eval/accuracy" in text and r"95\% intervals" in text
    assert {len(row) for row in rows(text)} == {8}


def test_varied_values_have_columns_and_one_method_alone_has_no_difference(tmp_path: Path) -> None:
    paths = [
        make_run(tmp_path / rate, seed=seed, overrides=[f"optim.lr={rate}"])
        for rate in ("1e-5", "1e-3")
        for seed in range(2)
    ]
    runs, _ = read_runs(paths)
    heading, *found = rows(main_table(build(runs, Options(vary=("optim.lr",)))))
    assert heading[:3] == ["Method", "optim.lr", "Seeds"] and "Difference" not in heading
    assert sorted(row[1] for row in found) == ["0.001", "1e-05"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a_b & 5%", r"a\_b \& 5\%"), ("\\x{y}", r"\textbackslash{}x\{y\}"), ("$1^2~#<>", None), ("plain", "plain")],
)
def test_nothing_is_left_for_latex_to_read(text: str, shown: str | None) -> None:
    found = escape(text)
    assert shown is None or found == shown
    assert not re.search(r"(?<!\\)[&%$#_~^<>]", found)
