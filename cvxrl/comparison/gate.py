"""`--require`: a small language over a comparison, parsed by hand and never evaluated as code.

comparison := sum ("<" | "<=" | ">" | ">=" | "==" | "!=") sum
sum        := product (("+" | "-") product)*
product    := unary (("*" | "/") unary)*
unary      := "-" unary | number | "(" sum ")" | ("low" | "high") "(" measured ")" | measured
measured   := "P" "(" name ">" name ")" | function "(" name ("," name)? ")"

A name is that of a method, with a varied key that of a method at a value; in `headroom`, `most` and `least` that of a
method over all values. In quotes it may hold any character (`cvxrl/comparison/gate_text.py`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cvxrl.comparison.gate_functions import (
    ENDS,
    FUNCTIONS,
    INTERVAL_OF_ONE,
    INTERVAL_OF_TWO,
    OF_ONE,
    OF_SWEEP,
    OF_TWO,
    ROOM,
    end_or_nan,
    or_nan,
    room_of,
    room_range,
)
from cvxrl.comparison.gate_text import MalformedError, Scanner
from cvxrl.comparison.result import Comparison
from cvxrl.errors import Problem, UserError, suggest
from cvxrl.stats.bootstrap import Interval

Term = Callable[[Comparison], float]

_LONGEST = 500  # characters
_DEEPEST = 20  # parentheses and signs inside one another
_TOLERANCE = 1e-9  # relative; the mean of 0.7, 0.8 and 0.9 is to count as 0.8
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Gate:
    """A parsed `--require`.

    Attributes:
        text: as the user wrote it.
        left, right: both sides.
        sign: the comparison between them.
        names: methods it speaks of, each at one value of a varied key.
        swept: methods it speaks of over all values of the varied key.
    """

    text: str
    left: Term
    right: Term
    sign: str
    names: tuple[str, ...]
    swept: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """A gate held against a comparison.

    A side without a value (NaN) never meets it, nor do two sides that were never reached, nor a method with runs that
    have not ended.
    """

    text: str
    met: bool
    left: float
    right: float
    sign: str
    unfinished: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Say whether it is met, and with which sides."""
        word = "met" if self.met else "not met"
        if self.unfinished:
            word = f"unfinished ({', '.join(self.unfinished)})"
        return f"{self.text}: {word}, left side is {self.left:.4g}, right side is {self.right:.4g}"


def parse_gate(text: str) -> Gate:
    """Parse a requirement.

    Raises:
        UserError: it is malformed.
    """
    try:
        return _Parser(text).gate()
    except MalformedError as error:
        examples = 'write e.g. "low(diff(a, b)) > 0" or "failures(a) == 0"'
        quoted = "a name with other characters than letters, digits and ._@- stands in quotes"
        remedy = f"{examples}; {quoted}; there are {', '.join(FUNCTIONS)}"
        raise UserError(Problem(f"`{text}`: {error}", "--require", remedy=remedy)) from None


def check_names(gate: Gate, comparison: Comparison) -> list[Problem]:
    """Names in a requirement that are no method here."""
    known = [s.label for s in comparison.summaries]
    problems = []
    for name in gate.names:
        if name not in known:
            remedy = f"{suggest(name, known)}methods here: {', '.join(known)}"
            problems.append(Problem(f"`{gate.text}`: no method `{name}`", "--require", remedy=remedy))
    swept = [h.method for h in comparison.headrooms]
    for name in gate.swept:
        if name not in swept:
            remedy = f"{suggest(name, swept)}methods with one: {', '.join(swept) or 'none'}"
            what = f"`{gate.text}`: no headroom of `{name}`, which needs one --vary KEY with two positive values"
            problems.append(Problem(what, "--require", remedy=remedy))
    return problems


def judge(gate: Gate, comparison: Comparison) -> Verdict:
    """Evaluate both sides; all names must be known."""
    left, right = gate.left(comparison), gate.right(comparison)
    close = math.isclose(left, right, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    told = not math.isnan(left) and not math.isnan(right) and not (math.isinf(left) and math.isinf(right))
    unfinished = tuple(name for name in gate.names if comparison.summary(name).unfinished)
    unfinished += tuple(name for name in gate.swept if comparison.headroom(name).unfinished)
    met = told and not unfinished and _COMPARE[gate.sign](left, left if close else right)
    return Verdict(gate.text, met, left, right, gate.sign, unfinished)


class _Parser:
    def __init__(self, text: str) -> None:
        if len(text) > _LONGEST:
            raise MalformedError(f"longer than {_LONGEST} characters")
        self._text, self._names, self._swept = Scanner(text), list[str](), list[str]()
        self._depth = 0

    def gate(self) -> Gate:
        left = self._sum()
        sign = self._text.one_of(tuple(_COMPARE))
        if sign is None:
            raise self._text.expected("one of < <= > >= == !=")
        right = self._sum()
        if self._text.rest():
            raise self._text.expected("the end")
        names, swept = (tuple(dict.fromkeys(found)) for found in (self._names, self._swept))
        return Gate(self._text.text, left, right, sign, names, swept)

    def _sum(self) -> Term:
        term = self._product()
        while sign := self._text.one_of(("+", "-")):
            term = _apply(operator.add if sign == "+" else operator.sub, term, self._product())
        return term

    def _product(self) -> Term:
        term = self._unary()
        while sign := self._text.one_of(("*", "/")):
            term = _apply(operator.mul if sign == "*" else _divide, term, self._unary())
        return term

    def _unary(self) -> Term:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise MalformedError("nested too deeply")
        try:
            return self._signed_or_inside()
        finally:
            self._depth -= 1

    def _signed_or_inside(self) -> Term:
        if self._text.one_of(("-",)):
            inner = self._unary()
            return lambda c: -inner(c)
        if self._text.one_of(("(",)):
            inside = self._sum()
            self._text.must(")")
            return inside
        number = self._text.number()
        if number is not None:
            value = float(number)
            return lambda c: value
        return self._function()

    def _function(self) -> Term:
        word = self._word(("low", "high", *OF_TWO, *OF_ONE, *OF_SWEEP, ROOM))
        self._text.must("(")
        end = ENDS.get(word)
        if end is not None:
            term = self._end_of(end)
            self._text.must(")")
            return term
        first, second = self._names_of(word)
        if word == ROOM:
            return lambda c: or_nan(room_of(c.headroom(first), c.headroom(second) if second else None))
        if word in OF_SWEEP:
            return lambda c: or_nan(OF_SWEEP[word]([s for s in c.summaries if s.method == first]))
        if second is None:
            of_one = OF_ONE[word]
            return lambda c: or_nan(of_one(c.summary(first)))
        of_two, other = OF_TWO[word], second
        return lambda c: or_nan(of_two(c.summary(first), c.summary(other)))

    def _end_of(self, end: Callable[[Interval], float]) -> Term:
        """An end of the interval of what stands inside; of a method's name, of its IQM."""
        start = self._text.at
        word = self._text.word()
        if word is None or self._text.one_of(("(",)) is None:
            self._text.at = start
            name = self._name(self._names)
            return lambda c: end_or_nan(end, INTERVAL_OF_ONE["iqm"](c.summary(name)))
        known = (*INTERVAL_OF_TWO, *INTERVAL_OF_ONE, ROOM)
        if word not in known:
            self._text.at = start
            raise MalformedError(f"`{word}` has no interval, {', '.join(known)} have")
        first, second = self._names_of(word)
        if word == ROOM:
            return lambda c: end_or_nan(
                end, room_range(c.headroom(first), c.headroom(second) if second else None, c.options.confidence)
            )
        if second is None:
            of_one = INTERVAL_OF_ONE[word]
            return lambda c: end_or_nan(end, of_one(c.summary(first)))
        of_two, other = INTERVAL_OF_TWO[word], second
        return lambda c: end_or_nan(end, of_two(c.summary(first), c.summary(other), c.options.confidence))

    def _names_of(self, word: str) -> tuple[str, str | None]:
        """The name or names that a function takes, and its closing parenthesis."""
        named = self._swept if word in (ROOM, *OF_SWEEP) else self._names
        first, second = self._name(named), None
        if word == ROOM and self._text.one_of((",",)):
            second = self._name(named)
        elif word in OF_TWO:
            self._text.must(">" if word == "P" else ",")
            second = self._name(named)
        self._text.must(")")
        return first, second

    def _word(self, known: Sequence[str]) -> str:
        start = self._text.at
        word = self._text.word()
        if word is None:
            raise self._text.expected("a number or a function")
        if word not in known:
            self._text.at = start
            hint = suggest(word, known).strip()
            raise MalformedError(f"unknown function `{word}`" + (f", {hint}" if hint else ""))
        return word

    def _name(self, named: list[str]) -> str:
        name = self._text.name()
        named.append(name)
        return name


def _apply(of: Callable[[float, float], float], left: Term, right: Term) -> Term:
    return lambda c: of(left(c), right(c))


def _divide(a: float, b: float) -> float:
    return a / b if b else math.nan
