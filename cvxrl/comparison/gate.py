"""`--require`: a small language over a comparison, parsed by hand and never evaluated as code.

comparison := sum ("<" | "<=" | ">" | ">=" | "==" | "!=") sum
sum        := product (("+" | "-") product)*
product    := unary (("*" | "/") unary)*
unary      := "-" unary | number | "(" sum ")" | P "(" name ">" name ")" | function "(" name ("," name)? ")"
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cvxrl.comparison.pair import difference, improvement
from cvxrl.comparison.result import Comparison
from cvxrl.comparison.summary import GroupSummary
from cvxrl.errors import Problem, UserError, suggest

Term = Callable[[Comparison], float]

_LONGEST = 500  # characters
_DEEPEST = 20  # parentheses and signs inside one another
_TOLERANCE = 1e-9  # relative; the mean of 0.7, 0.8 and 0.9 is to count as 0.8
_NUMBER = re.compile(r"\d+\.?\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[^\]]*\])?")
_WORD = re.compile(r"[A-Za-z_]+")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_ONE: Mapping[str, Callable[[GroupSummary], float | None]] = {
    "mean": lambda s: s.mean,
    "median": lambda s: s.median,
    "iqm": lambda s: s.iqm,
    "worst": lambda s: s.worst,
    "best": lambda s: s.best,
    "area": lambda s: s.area,
    "low": lambda s: s.intervals["iqm"].low if s.intervals else None,
    "high": lambda s: s.intervals["iqm"].high if s.intervals else None,
    "seeds": lambda s: len(s.scores),
    "finished": lambda s: s.finished,
    "diverged": lambda s: s.diverged,
    "collapsed": lambda s: s.collapsed,
    "unfinished": lambda s: s.unfinished,
    "reached": lambda s: s.reached.count,
    "steps": lambda s: s.reached.steps if s.reached.steps is not None else math.inf,
    "tokens": lambda s: s.reached.tokens if s.reached.steps is not None else math.inf,
    "seconds": lambda s: s.seconds,
}
FUNCTIONS = ("P(a > b)", "diff(a, b)", *(f"{name}(a)" for name in _ONE))


@dataclass(frozen=True)
class Gate:
    """A parsed `--require`.

    Attributes:
        text: as the user wrote it.
        left, right: both sides.
        sign: the comparison between them.
        names: methods it speaks of.
    """

    text: str
    left: Term
    right: Term
    sign: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """A gate held against a comparison; a side without a value (NaN) never meets it."""

    text: str
    met: bool
    left: float
    right: float
    sign: str

    def __str__(self) -> str:
        """Say whether it is met, and with which sides."""
        word = "met" if self.met else "not met"
        return f"{self.text}: {word}, left side is {self.left:.4g}, right side is {self.right:.4g}"


def parse_gate(text: str) -> Gate:
    """Parse a requirement.

    Raises:
        UserError: it is malformed.
    """
    try:
        return _Parser(text).gate()
    except _MalformedError as error:
        remedy = f'write e.g. "P(a > b) > 0.9" or "collapsed(a) == 0"; there are {", ".join(FUNCTIONS)}'
        raise UserError(Problem(f"`{text}`: {error}", "--require", remedy=remedy)) from None


def check_names(gate: Gate, comparison: Comparison) -> list[Problem]:
    """Names in a requirement that are no method here."""
    known = [s.label for s in comparison.summaries]
    problems = []
    for name in gate.names:
        if name not in known:
            remedy = f"{suggest(name, known)}methods here: {', '.join(known)}"
            problems.append(Problem(f"`{gate.text}`: no method `{name}`", "--require", remedy=remedy))
    return problems


def judge(gate: Gate, comparison: Comparison) -> Verdict:
    """Evaluate both sides; all names must be known."""
    left, right = gate.left(comparison), gate.right(comparison)
    close = math.isclose(left, right, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    met = _COMPARE[gate.sign](left, left if close else right) and not math.isnan(left) and not math.isnan(right)
    return Verdict(gate.text, met, left, right, gate.sign)


class _MalformedError(Exception):
    """The text does not follow the grammar."""


class _Parser:
    def __init__(self, text: str) -> None:
        if len(text) > _LONGEST:
            raise _MalformedError(f"longer than {_LONGEST} characters")
        self._text, self._at, self._names = text, 0, list[str]()
        self._depth = 0

    def gate(self) -> Gate:
        left = self._sum()
        sign = self._one_of(tuple(_COMPARE))
        if sign is None:
            raise self._expected("one of < <= > >= == !=")
        right = self._sum()
        if self._rest():
            raise self._expected("the end")
        return Gate(self._text, left, right, sign, tuple(dict.fromkeys(self._names)))

    def _sum(self) -> Term:
        term = self._product()
        while sign := self._one_of(("+", "-")):
            term = _apply(operator.add if sign == "+" else operator.sub, term, self._product())
        return term

    def _product(self) -> Term:
        term = self._unary()
        while sign := self._one_of(("*", "/")):
            term = _apply(operator.mul if sign == "*" else _divide, term, self._unary())
        return term

    def _unary(self) -> Term:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _MalformedError("nested too deeply")
        try:
            return self._signed_or_inside()
        finally:
            self._depth -= 1

    def _signed_or_inside(self) -> Term:
        if self._one_of(("-",)):
            inner = self._unary()
            return lambda c: -inner(c)
        if self._one_of(("(",)):
            inside = self._sum()
            self._must(")")
            return inside
        number = self._match(_NUMBER)
        if number is not None:
            value = float(number)
            return lambda c: value
        return self._function()

    def _function(self) -> Term:
        start = self._at
        word = self._match(_WORD)
        if word is None:
            raise self._expected("a number or a function")
        if word not in ("P", "diff", *_ONE):
            self._at = start
            hint = suggest(word, ["P", "diff", *_ONE]).strip()
            raise _MalformedError(f"unknown function `{word}`" + (f", {hint}" if hint else ""))
        self._must("(")
        first = self._name()
        if word in ("P", "diff"):
            self._must(">" if word == "P" else ",")
            second = self._name()
            of_two = improvement if word == "P" else difference
            self._must(")")
            return lambda c: _value(of_two(c.summary(first), c.summary(second)))
        self._must(")")
        of_one = _ONE[word]
        return lambda c: _value(of_one(c.summary(first)))

    def _name(self) -> str:
        name = self._match(_NAME)
        if name is None:
            raise self._expected("the name of a method")
        self._names.append(name)
        return name

    def _must(self, token: str) -> None:
        if self._one_of((token,)) is None:
            raise self._expected(f"`{token}`")

    def _one_of(self, tokens: tuple[str, ...]) -> str | None:
        rest = self._rest()
        found = next((t for t in tokens if rest.startswith(t)), None)
        self._at += len(found or "")
        return found

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self._rest())
        self._at += found.end() if found else 0
        return found.group() if found else None

    def _rest(self) -> str:
        stripped = self._text[self._at :].lstrip()
        self._at = len(self._text) - len(stripped)
        return stripped

    def _expected(self, what: str) -> _MalformedError:
        rest = self._rest()
        return _MalformedError(f"expected {what} " + (f"at `{rest[:20]}`" if rest else "at the end"))


def _apply(of: Callable[[float, float], float], left: Term, right: Term) -> Term:
    return lambda c: of(left(c), right(c))


def _divide(a: float, b: float) -> float:
    return a / b if b else math.nan


def _value(value: float | None) -> float:
    return math.nan if value is None else float(value)
