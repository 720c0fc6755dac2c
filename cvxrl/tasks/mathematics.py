r"""Equality of two answers as mathematics, by the package math-verify; runs in the grading process.

Before math-verify is asked, both answers are brought into the notation that it reads (`cvxrl.tasks.notation`), answers
in words are compared as words, and equal texts are equal whatever the parser makes of them. What it calls equal because
it rounds both to six decimals is looked at again.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from cvxrl.tasks.notation import plain, rewritten, standard, without_percent, words_of
from cvxrl.tasks.passages import boxed_spans, last_boxed
from cvxrl.tasks.worker import Judge, NotGradable

_FORMULA = re.compile(r"\$\$(?P<display>[^$]+)\$\$|(?<!\\)\$(?P<inline>(?:\\\$|[^$])+?)(?<!\\)\$")
_SENTENCE_END = re.compile(r"[.!?](?=\s|\Z)|\n")
_CLOCK = re.compile(r"([0-9]{1,2}):([0-9]{2})(?P<half>am|pm)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_BASE = re.compile(r"([0-9A-F]+)_\{?([0-9]+|\\text\{[a-z]+\})\}?")
# Below the six decimals to which math-verify rounds, two numbers differ if they differ by more than this share.
_SHARE = 1e-5


def math_verify(options: dict[str, Any]) -> Judge:
    """Make the judge of jobs `{"gold", "reply", "whole"}`: 1 if both are equal as mathematics, else 0.

    `whole` says that `reply` is a whole reply, in which math-verify is to find the answer, and not an answer
    alone. A job `{"gold"}` asks whether the right answer can be read at all: 1, or the error `gold`.
    """
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its own time limit is off: ours is on
    importlib.import_module("math_verify")

    def judge(job: dict[str, Any]) -> float:
        gold = gold_answer(job["gold"])
        if "reply" not in job:
            return float(words_of(gold) is not None or bool(_gold_readings(standard(gold))))
        reply, whole = job["reply"], job["whole"]
        return float(states(gold, reply) if whole else equal(gold, reply))

    return judge


def states(gold: str, reply: str) -> bool:
    """Tell whether a whole reply states the answer `gold`: in its box, as its only formula, or where math-verify looks.

    Raises:
        NotGradable: `gold` cannot be read, or nothing in the reply (`parse`).
    """
    boxed, formula = last_boxed(reply), _FORMULA.fullmatch(reply.strip())
    stated = boxed if boxed is not None else formula and (formula["display"] or formula["inline"])
    try:
        if equal(gold, reply if stated is None else stated):
            return True
    except NotGradable as reason:
        if str(reason) == "gold":
            raise
    if words_of(gold) is not None:
        return False
    found = _readings(rewritten(reply), whole=True)
    if not found:
        raise NotGradable("parse")
    return _verify(_gold_readings(standard(gold)), found)


def equal(gold: str, reply: str) -> bool:
    """Tell whether the answer `reply` is the answer `gold`.

    Raises:
        NotGradable: one of the two cannot be read, `gold` or `parse`, and they are not the same text.
    """
    if not gold.strip():
        raise NotGradable("gold")
    ours, theirs = standard(gold), standard(reply)
    if gold.strip() == reply.strip() or _same_text(gold, reply) or _same_text(ours, theirs):
        return True
    words = words_of(gold)
    if words is not None:
        return words == words_of(reply)
    same = _same_label(ours, theirs)
    if same is not None:
        return same
    golds, replies = _gold_readings(ours), _readings(theirs)
    if not replies:
        raise NotGradable("parse")
    if _verify(golds, replies):
        return True
    # 45% answers "how many percent?" as 45 does; where both have the sign or neither has, it means what it says.
    ours_bare, theirs_bare = without_percent(ours), without_percent(theirs)
    if ours_bare is not None and theirs_bare is None:
        return _verify(_readings(ours_bare), replies)
    return theirs_bare is not None and ours_bare is None and _verify(golds, _readings(theirs_bare))


def _same_text(gold: str, reply: str) -> bool:
    """Whether the plain texts are equal; of a lone currency or full stop nothing is left to be equal to."""
    ours = plain(gold)
    return ours != "" and ours == plain(reply)


def _same_label(gold: str, reply: str) -> bool | None:
    """Compare what math-verify misreads: dates, numbers that name their base, times of the day; None for others."""
    if _DATE.fullmatch(gold):
        return gold == reply  # no difference of three numbers
    based = _BASE.fullmatch(gold), _BASE.fullmatch(reply)
    if based[0] is not None and based[1] is not None:
        return based[0].groups() == based[1].groups()
    times = _CLOCK.fullmatch(gold), _CLOCK.fullmatch(reply)
    if times[0] is None or times[1] is None or not (times[0]["half"] and times[1]["half"]):
        return None
    return times[0].groups() == times[1].groups()


def gold_answer(gold: str) -> str:
    r"""The answer that a right answer's text states, several joined by commas: of `\boxed{1} and \boxed{2}`, `1, 2`.

    All boxes of its last sentence with one count, or else all formulas in dollar signs, where no number stands outside.
    """
    boxes = boxed_spans(gold)
    if boxes:
        return _joined(gold, boxes)
    formulas = [(m.start(), m.end(), m["display"] or m["inline"]) for m in _FORMULA.finditer(gold)]
    if formulas and not re.search("[0-9]", _FORMULA.sub("", gold)):
        return _joined(gold, formulas)
    return gold


def _joined(text: str, spans: Sequence[tuple[int, int, str]]) -> str:
    """The contents of the last spans that no end of a sentence parts, each once, in order."""
    kept = [spans[-1]]
    for span in reversed(spans[:-1]):
        if _SENTENCE_END.search(text[span[1] : kept[0][0]]):
            break
        kept.insert(0, span)
    return ", ".join(dict.fromkeys(content.strip() for _, _, content in kept))


@lru_cache(maxsize=4096)
def _gold_readings(text: str) -> Any:
    """What math-verify makes of a right answer; each is read once, however many replies there are.

    Raises:
        NotGradable: it makes nothing of it.
    """
    found = _readings(text)
    if not found:
        raise NotGradable("gold")
    return found


def _readings(text: str, whole: bool = False) -> Any:
    """What math-verify makes of an answer, or of a whole reply in which it has to look for one; empty if nothing."""
    package = importlib.import_module("math_verify")
    if whole:
        found = package.parse(text, parsing_timeout=None)
    else:
        # Bare LaTeX would be cut at the first sign that does not parse.
        boxed = f"\\boxed{{{text}}}"
        found = package.parse(boxed, extraction_config=[package.LatexExtractionConfig()], parsing_timeout=None)
    # A lone string is the text itself, handed back because it could not be read as mathematics.
    return [] if all(isinstance(f, str) for f in found) else found


def _verify(gold: Any, reply: Any) -> bool:
    """Ask math-verify; gold first, since an interval may answer an inequality, but not the reverse."""
    package = importlib.import_module("math_verify")
    if not package.verify(gold, reply, timeout_seconds=None):
        return False
    return not _far_apart(gold[0], reply[0])


def _far_apart(left: Any, right: Any) -> bool:
    """Tell whether two numbers that are equal to six decimals differ all the same, as 3e-7 and 4e-7 do."""
    try:
        if left.free_symbols or right.free_symbols or "UnevaluatedExpr" in f"{left.args}{right.args}":
            return False
        a, b = (complex(value.doit().evalf(20, chop=False)) for value in (left, right))
    except (AttributeError, TypeError, ValueError, OverflowError):
        return False  # no numbers: sets, relations, matrices
    return max(abs(a), abs(b)) < 1 and abs(a - b) > _SHARE * max(abs(a), abs(b))
