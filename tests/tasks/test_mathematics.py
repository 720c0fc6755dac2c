r"""The math grader against answers graded by hand, and the notations that its parser would misread."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import TypeAdapter
from unusual_golds import QUESTIONS, Question

from cvxrl.errors import UserError
from cvxrl.recipe.task import TaskSpec
from cvxrl.tasks import Example, Grader, check_golds, load_grader
from cvxrl.tasks.mathematics import equal, gold_answer
from cvxrl.tasks.notation import standard, words_of
from cvxrl.tasks.worker import NotGradable

pytest.importorskip("math_verify")

# Right answer, reply's answer, and whether that is right.
PAIRS = (
    ("listen", "silent", False),
    ("Yes", "yes", True),
    ("red and blue", "blue, red", True),
    (r"6.63\times 10^{-34}", r"9.1\times 10^{-31}", False),
    ("0.0000003", "0.0000004", False),
    ("1e-10", "0", False),
    ("1/3", "0.333333", True),
    ("1/3", r"0.\overline{3}", True),
    ("1/6", r"0.1\overline{6}", True),
    ("$1$ or $-1$", r"\pm 1", True),
    (r"The answer is $\frac12$.", "0.5", True),
    (r"First \boxed{2}. Then \boxed{5}.", "5", True),
    (r"First \boxed{2}. Then \boxed{5}.", "2", False),
    (r"\boxed{1}, \boxed{2}, or \boxed{3}", "3, 2, 1", True),
    ("(1,2),(3,4)", "(3,4),(1,2)", True),
    ("(1,2),(3,4)", "(2,1),(3,4)", False),
    ("(1,2,3)", "(3,2,1)", False),
    ("[1,2]", "(1,2)", False),
    (r"2\le x\le5", "[2,5]", True),
    ("x>3", r"x\ge3", False),
    ("x<1 or x>2", "x>2 or x<1", True),
    ("x<1 or x>2", "x>2", False),
    ("1,000,000", "1 000 000", True),
    ("1{,}234.5", "1234.5", True),
    (r"1\,234\,567", "1234567", True),
    (r"1\;000", "1000", True),
    ("10^{-7}", "0", False),
    (r"1 \pm \sqrt2", r"1+\sqrt2, 1-\sqrt2", True),
    ("2n+1", "1+2n", True),
    ("b^2-a^2", "(a-b)(a+b)", False),
    ("A, C", "C, A", True),
    ("9:05", "9:50", False),
    ("-3 1/2", "-3.5", True),
    ("5 1/2%", r"5.5\%", True),
    ("50%", "50", True),
    ("50%", "5", False),
    ("100", "1", False),
    ("5 euros", "5", True),
    ("10 cm^2", "10", True),
    ("5 km/h", "5", True),
    ("x\N{SUPERSCRIPT TWO}", "x^2", True),
    ("2\N{VULGAR FRACTION ONE HALF}", "2.5", True),
    ("\N{SQUARE ROOT}3", r"\sqrt{3}", True),
    (r"\emptyset", r"\varnothing", True),
    ("2024-05-01", "2018", False),
    ("5:30 pm", "5:30 PM", True),
    ("5:30 pm", "5:30 am", False),
    (r"\begin{cases}x=1\\y=2\end{cases}", "x=1,y=2", True),
    ("18446744073709551617", "18446744073709551616", False),
    (r"100\degree", "100", True),
    (r"\text{Yes}, \text{No}", r"\text{No}, \text{Yes}", True),
    ("(Yes, No)", "(No, Yes)", False),
    ("red and blue", "red or blue", True),
    ("12,500", "12, 500", True),
    ("12, 500", "12,500", True),
    ("12,500", "12500", True),
    ("12500", "12, 500", False),
)


def load(extract: str, **reward: Any) -> Grader:
    task = {"source": {"kind": "arithmetic"}, "extract": {"kind": extract}, "reward": {"kind": "math-verify"} | reward}
    return load_grader(TypeAdapter(TaskSpec).validate_python(task))


@pytest.fixture(scope="module")
def boxed() -> Iterator[Grader]:
    made = load("boxed", timeout_s=30.0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def whole() -> Iterator[Grader]:
    made = load("none", timeout_s=30.0)
    yield made
    made.close()


def in_box(answer: str) -> str:
    return answer if answer.startswith(r"\boxed") else f"\\boxed{{{answer}}}"


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda q: q.gold)
def test_unusual_right_answers_are_graded_as_by_hand(boxed: Grader, question: Question) -> None:
    replies = [*question.right, *question.wrong]
    grades = boxed.grade([in_box(reply) for reply in replies], [Example("0", "", question.gold)] * len(replies))
    right = [reply for reply, grade in zip(replies, grades, strict=True) if grade.correct]
    assert right == [*question.right]
    assert not any(grade.error for grade in grades if grade.correct)


def test_pairs_of_answers(boxed: Grader) -> None:
    grades = boxed.grade([in_box(reply) for _, reply, _ in PAIRS], [Example("0", "", gold) for gold, _, _ in PAIRS])
    found = [(gold, reply, grade.correct) for (gold, reply, _), grade in zip(PAIRS, grades, strict=True)]
    assert found == [*PAIRS]


@pytest.mark.parametrize(
    "gold", ["-3./2", "5.", r"\frac{1", r"\boxed{1} papers and \boxed{2} bins", r"3 \sqrt", "7:30 p.m."]
)
def test_the_same_text_is_right_whatever_the_parser_makes_of_it(boxed: Grader, whole: Grader, gold: str) -> None:
    assert whole.grade([gold], [Example("0", "", gold)])[0].correct
    reply = gold if "boxed" in gold else f"\\boxed{{{gold}}}"
    if "{1" not in gold or "}" in gold:  # a box never closes around an open brace
        assert boxed.grade([reply], [Example("0", "", gold)])[0].correct


@pytest.mark.parametrize(
    ("gold", "reply", "right"),
    [
        ("2125", "The total is $2{,}125$.", True),
        ("-3./2", "The slope is -3/2", True),
        ("5", "The answer is 5.", True),
        ("1, 2", "So $x=1$ or $x=2$.", True),
        (r"\boxed{1} and \boxed{2}", r"So $x$ is \boxed{1} or \boxed{2}.", True),
        (r"\boxed{1} and \boxed{2}", r"So $x$ is \boxed{2}.", False),
        ("2", r"\boxed{1} and \boxed{2}", False),
        ("yes", "Yes.", True),
    ],
)
def test_answers_are_found_in_whole_replies(whole: Grader, gold: str, reply: str, right: bool) -> None:
    assert whole.grade([reply], [Example("0", "", gold)])[0].correct == right


@pytest.mark.parametrize("gold", [".", "$", r"\$", r"\text{}", "$$", "\N{EURO SIGN}"])
def test_a_right_answer_of_which_nothing_is_left_is_its_own_text_alone(gold: str) -> None:
    assert equal(gold, gold)
    for reply in ("", " ", "..", "x"):
        with pytest.raises(NotGradable, match="gold"):
            equal(gold, reply)


def test_what_a_right_answer_s_text_states() -> None:
    assert gold_answer(r"\boxed{1} and \boxed{2}") == "1, 2"
    assert gold_answer(r"We get \boxed{1}. So it is \boxed{7}.") == "7"
    assert gold_answer(r"\boxed{\frac{1}{2}}") == r"\frac{1}{2}"
    assert gold_answer("$1$ and 2") == "$1$ and 2"
    assert standard("-2 2/3") == r"-\frac{8}{3}" and standard("3. ") == "3"
    assert words_of("No solution.") == ("no solution",) and words_of("xyz") is None and words_of(r"\sin x") is None


def test_right_answers_that_cannot_be_read_are_named_when_data_are_loaded(
    boxed: Grader, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ["7", r"\frac{1", "Tuesday", r"3 \sqrt", "5.", r"\frac{1"]
    examples = [Example(str(i), f"p{i}", answer) for i, answer in enumerate(rows)]
    task = {"source": {"kind": "arithmetic"}, "extract": {"kind": "boxed"}, "reward": {"kind": "math-verify"}}
    with caplog.at_level(logging.WARNING):
        check_golds(TypeAdapter(TaskSpec).validate_python(task), boxed, examples)
    assert "3 of 6 right answers" in caplog.text
    assert all(part in caplog.text for part in (r"row 1 `\frac{1`", r"row 3 `3 \sqrt`", "row 5"))
    caplog.clear()
    check_golds(TypeAdapter(TaskSpec).validate_python(task | {"grading": {"golds": "ignore"}}), boxed, examples)
    assert caplog.text == ""
    with pytest.raises(UserError, match=r"task\.grading\.golds"):
        check_golds(TypeAdapter(TaskSpec).validate_python(task | {"grading": {"golds": "refuse"}}), boxed, examples)
    with pytest.raises(UserError, match=r"2 of 2"):
        check_golds(TypeAdapter(TaskSpec).validate_python(task), boxed, [examples[1], examples[3]])
