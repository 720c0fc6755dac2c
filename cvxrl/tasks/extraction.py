r"""Which part of a reply is its answer, by the recipe's extraction; none where there is no answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from cvxrl.recipe.extract import (
    BoxedExtract,
    ExtractSpec,
    LastIntegerExtract,
    LastNumberExtract,
    NoExtract,
    RegexExtract,
    TagExtract,
)
from cvxrl.tasks.passages import last_boxed, last_group, last_tag
from cvxrl.tasks.sandbox import Sandbox, Saw

_CURRENCY = r"\\?[$\u20ac\u00a3\u00a5\u20b9]"
# A minus right after a digit, letter or closing bracket is a subtraction, not a sign: `20-3` ends in 3, `=-3` in -3.
# Before a currency it must not follow another or a dash either: `$3$-$5`, a range, and `in all--$5` end in 5.
_BEFORE_CURRENCY = r"(?<![\w)\]}%-])(?<![\w)\]}][$\u20ac\u00a3\u00a5\u20b9])(?<![\w)\]}]\\[$\u20ac\u00a3\u00a5\u20b9])"
_NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}])-|{_BEFORE_CURRENCY}-{_CURRENCY})?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)"
)
_SEPARATOR = re.compile(r"(?<=[0-9])(?:\{,\}|\\[,;! ]|['\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
_SPACED = re.compile(r"(?<![0-9.,] )(?<![\w.,])[0-9]{1,3}(?: [0-9]{3})++(?![0-9])(?! [0-9])")
# A right answer that is one number with what people write around one.
_GOLD = re.compile(
    r"(?:[A-Za-z]\w*\s*=\s*)?[+$\u20ac\u00a3\u00a5\u20b9\\\s]*"
    rf"(?P<number>-?\s?(?:{_CURRENCY})?"
    r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?"
    rf"|-?(?:{_CURRENCY})?\.[0-9]+)"
    r"(?:\s*\\?[%$\u20ac\u00b0]|\s+[A-Za-z][A-Za-z .]*)?\.?"
)


@dataclass(frozen=True)
class Extracted:
    """What was extracted from a reply.

    Attributes:
        text: the answer, or None if there is none.
        error: why it could not be looked for: `timeout`, `memory` or `crash`.
    """

    text: str | None
    error: str | None = None


class Extractor:
    """Extracts the answers of replies.

    All kinds take time proportional to the reply, but for a regular expression, which can take for ever on a text that
    the policy chose; it runs in a process of its own, under a limit.
    """

    def __init__(self, spec: ExtractSpec) -> None:
        """Keep the recipe section; a process starts with the first reply."""
        self._spec = spec
        self.sandbox: Sandbox | None = None
        if isinstance(spec, RegexExtract):
            options = {"pattern": spec.pattern}
            self.sandbox = Sandbox(
                "cvxrl.tasks.judges:pattern", options, spec.timeout_s, spec.memory_mb, "task.extract"
            )

    def extract(self, replies: Sequence[str], saw: Saw) -> list[Extracted]:
        """Extract the answer of each reply, in order; `saw` is told of those for which that failed."""
        if self.sandbox is None:
            return [Extracted(extract(reply, self._spec)) for reply in replies]
        results = self.sandbox.run(
            [{"reply": reply} for reply in replies],
            lambda error, times: None if error is None else saw(error, times),
        )
        return [Extracted(result.get("text"), result.error) for result in results]

    def close(self) -> None:
        """End the process, if there is one."""
        if self.sandbox is not None:
            self.sandbox.close()


def extract(text: str, spec: ExtractSpec) -> str | None:
    """Return the part of `text` that `spec` asks for, stripped; none if it is not there."""
    match spec:
        case NoExtract():
            return text.strip()
        case LastIntegerExtract():
            return last_integer(text)
        case LastNumberExtract():
            return last_number(text)
        case BoxedExtract():
            return last_boxed(text)
        case TagExtract():
            return last_tag(text, spec.tag)
        case RegexExtract():
            return last_group(text, spec.pattern)


def looks_for(spec: ExtractSpec, token: str) -> bool:
    """Tell whether an extraction looks for this token, which a tokenizer may treat as special."""
    match spec:
        case TagExtract():
            return token.strip() in (f"<{spec.tag}>", f"</{spec.tag}>")
        case BoxedExtract():
            return "\\boxed" in token
        case RegexExtract():
            return token in spec.pattern or re.escape(token) in spec.pattern
        case _:
            return False


def canonical(answer: str, spec: ExtractSpec) -> str | None:
    """Write a right answer as the extraction writes a reply's, so that strings can be compared.

    Returns:
        The answer stripped; for the two numeric extractions the number alone, without currency, percent sign, unit
        or the name of a variable (`$1,200`, `x = 5`, `3 apples`), or none if the answer is no such number (then no
        reply could ever be right). `9.0` is the integer 9.
    """
    answer = answer.strip()
    if not isinstance(spec, LastIntegerExtract | LastNumberExtract):
        return answer
    found = _GOLD.fullmatch(_separated(answer.replace("\N{MINUS SIGN}", "-"), spaces=True))
    if found is None:
        return None
    number = _plain(found["number"])
    return None if isinstance(spec, LastIntegerExtract) and "." in number else number


def with_spaces(reply: str, spec: ExtractSpec) -> str | None:
    """What a numeric extraction finds where spaces separate thousands, as in `12 500`; none for other extractions.

    A list of numbers looks the same, so this counts only where it gives the right answer.
    """
    if not isinstance(spec, LastIntegerExtract | LastNumberExtract):
        return None
    return extract(_separated(reply, spaces=True), spec)


def last_integer(text: str) -> str | None:
    """Return the last integer, without separators and leading zeros; `3.5` is none, and neither is its 5."""
    found = [token for token in _numbers(text) if "." not in token]
    return _plain(found[-1]) if found else None


def last_number(text: str) -> str | None:
    """Return the last integer or decimal, in its shortest form: `1,072.50` gives `1072.5`."""
    found = _numbers(text)
    return _plain(found[-1]) if found else None


def _numbers(text: str) -> list[str]:
    return _NUMBER.findall(_separated(text.replace("\N{MINUS SIGN}", "-")))


def _separated(text: str, spaces: bool = False) -> str:
    r"""Text with commas for what else separates thousands: `2{,}125`, `2\,125`, and spaces if asked."""
    text = _SEPARATOR.sub(",", text)
    return _SPACED.sub(lambda found: found[0].replace(" ", ","), text) if spaces else text


def _plain(token: str) -> str:
    """Shorten a number as text: replies hold numbers too long for int() and too exact for float()."""
    sign = "-" if token.startswith("-") else ""
    whole, _, fraction = re.sub(r"[^0-9.]", "", token).partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    size = f"{whole}.{fraction}" if fraction else whole
    return size if size == "0" else sign + size
