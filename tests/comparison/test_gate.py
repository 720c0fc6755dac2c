"""`--require`: what is accepted, what is refused, what it says."""

from __future__ import annotations

import math

import pytest
from made_runs import make_run, make_seeds

from cvxrl.comparison.gate import check_names, judge, parse_gate
from cvxrl.comparison.options import Options
from cvxrl.comparison.result import Comparison, build
from cvxrl.comparison.sources import discover, read_runs
from cvxrl.errors import UserError

A, B = "math_grpo", "math_lco_kld"


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    tmp_path = tmp_path_factory.mktemp("runs")
    make_seeds(tmp_path, A, [0.7, 0.8, 0.9])
    make_seeds(tmp_path, B, [0.8, 0.9])
    make_run(tmp_path, B, 2, (0.4, 0.9, 0.1))
    make_run(tmp_path, B, 3, (0.4, 0.9, 0.9), status="diverged", diverged_at=2)
    return build(read_runs(discover([str(tmp_path)]).runs)[0], Options(resamples=100, threshold=0.8))


@pytest.mark.parametrize(
    ("text", "left", "met"),
    [
        ("P(math_grpo > math_lco_kld) > 0.9", 8 / 12, False),
        ("P(math_lco_kld>math_grpo)<0.9", 4 / 12, True),
        ("mean(math_grpo) >= 0.8", 0.8, True),
        ("median(math_grpo) != 0.8", 0.8, False),
        ("iqm(math_lco_kld) == 0.45", 0.45, True),
        ("worst(math_lco_kld) < 0", 0.0, False),
        ("best(math_lco_kld) <= 0.9", 0.9, True),
        ("collapsed(math_lco_kld) == 0", 2, False),  # one fell, one diverged
        ("failures(math_lco_kld) == 2", 2, True),
        ("failed(math_lco_kld) <= 0.5", 0.5, True),
        ("high(failed(math_grpo)) < 0.7", 1 - 0.025 ** (1 / 3), False),
        ("fell(math_lco_kld) + harmed(math_lco_kld) == 2", 2, True),
        ("unlearned(math_grpo) == 0", 0, True),
        ("low(mean(math_lco_kld)) >= 0", 0.0, True),
        ("p(math_grpo, math_grpo) == 1", 1.0, True),
        ("low(P(math_grpo > math_grpo)) < 0.5", 0.15277354, True),
        ("low(diff(math_grpo, math_grpo)) > 0", -0.06085385, False),
        ("steps(math_grpo) <= 99", 2.0, True),
        ("diverged(math_lco_kld) == 1", 1, True),
        ("collapsed(math_lco_kld) + diverged(math_lco_kld) == 3", 3, True),
        ("finished(math_lco_kld) * 2 - 1 > 4.5e0", 5, True),
        ("-(1 + 2) * 3 / 2 == -4.5", -4.5, True),
        ("diff(math_lco_kld, math_grpo) > 0", (0.8 + 0.9 + 0.1 + 0.0) / 4 - 0.8, False),
        ("reached(math_grpo) == 2", 2, True),
        ("steps(math_lco_kld) < 100", 1.5, True),
        ("seeds(math_lco_kld) >= 5", 4, False),
        ("unfinished(math_grpo) == 0", 0, True),
        ("mean(math_grpo) > 0.8", 0.8, False),
        ("mean(math_grpo) <= 0.8", 0.8, True),
        ("1 / 0 > -1", math.nan, False),  # without a value, never met
        ("1 / 0 != 3", math.nan, False),
    ],
)
def test_values(text: str, left: float, met: bool, comparison: Comparison) -> None:
    verdict = judge(parse_gate(text), comparison)
    assert verdict.left == pytest.approx(left, nan_ok=True) and verdict.met == met, verdict


def test_it_says_which_side_failed(comparison: Comparison) -> None:
    verdict = str(judge(parse_gate("mean(math_grpo) > best(math_lco_kld) + 0.5"), comparison))
    assert verdict.endswith("not met, left side is 0.8, right side is 1.4")
    assert "met, left side is 0.8" in str(judge(parse_gate("mean(math_grpo) > 0"), comparison))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "expected a number or a function at the end"),
        ("mean(a)", "expected one of < <="),
        ("mean(a) >", "at the end"),
        ("mean(a) > 1 > 2", "expected the end at `> 2`"),
        ("mean a > 1", r"expected `\(`"),
        ("mean(a > 1", r"expected `\)`"),
        ("mean() > 1", "name of a method"),
        ("mena(a) > 1", "unknown function `mena`, did you mean `mean`"),
        ("P(a < b) > 1", "expected `>`"),
        ("P(a) > 1", "expected `>`"),
        ("diff(a > b) > 1", "expected `,`"),
        ("mean(a, b) > 1", r"expected `\)`"),
        ("low(seeds(a)) > 1", "`seeds` has no interval"),
        ("low(diff(a)) > 1", "expected `,`"),
        ("low(low(a)) > 1", "`low` has no interval"),
        ("p(a > b) < 1", "expected `,`"),
        ("1 = 1", "expected one of"),
        ("a > 1", "unknown function `a`"),
        ("mean(a) > 1; import os", "expected the end"),
        ("__import__('os').system('true') == 0", "unknown function"),
        ("().__class__ == 1", "expected a number or a function"),
        ("9" * 501 + " > 1", "longer than"),
        ("(" * 400 + "1", "nested too deeply"),
        ("-" * 400 + "1", "nested too deeply"),
        ("é > 1", "expected a number or a function"),
        ("mean(my method) > 1", r"expected `\)` at `method"),
        ('mean("my method) > 1', "the quote before `my method"),
        ("mean('') > 1", "name of a method"),
    ],
)
def test_malformed(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse_gate(text)
    (problem,) = caught.value.problems
    assert problem.key == "--require" and "low(diff(a, b))" in problem.remedy and "in quotes" in problem.remedy


def test_unknown_methods_are_named(comparison: Comparison) -> None:
    problems = check_names(parse_gate("P(math_grpo > math_lco_kl) > mean(x)"), comparison)
    assert ["math_lco_kl`" in problems[0].message, "did you mean `math_lco_kld`" in problems[0].remedy] == [True, True]
    assert "no method `x`" in problems[1].message


def test_names_may_hold_dots_dashes_and_values() -> None:
    assert parse_gate("P(lco-kld_v1.2 > a[optim.lr=0.001]) > 0.9").names == ("lco-kld_v1.2", "a[optim.lr=0.001]")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("P(méthode > \u65b9\u6cd5) > 0.9", ("méthode", "\u65b9\u6cd5")),
        ('mean("my method") > 0', ("my method",)),
        ("low('my method') > 0", ("my method",)),
        ("low(méthode) > 0", ("méthode",)),
        ("low(diff(\"100% 'b' [x]\", 'say \"a\"')) > 0", ("100% 'b' [x]", 'say "a"')),
        ('diff("a, b)", a[k=[3, 5]]) > 0', ("a, b)", "a[k=[3, 5]]")),
        ('P("my method[optim.lr=0.1]" > "a") > 0', ("my method[optim.lr=0.1]", "a")),
    ],
)
def test_names_of_any_characters(text: str, names: tuple[str, ...]) -> None:
    assert parse_gate(text).names == names


def test_a_name_in_quotes_may_stand_for_all_values() -> None:
    assert parse_gate('headroom("my method", \'b c\') + most("d e") > 0').swept == ("my method", "b c", "d e")


def test_quotes_change_no_number(comparison: Comparison) -> None:
    gates = [parse_gate(f"low(diff({name}, math_lco_kld)) > 0") for name in (A, f'"{A}"', f"'{A}'")]
    assert len({judge(gate, comparison).left for gate in gates}) == 1
    assert check_names(parse_gate('mean("my method") > 0'), comparison)[0].message.endswith("no method `my method`")
