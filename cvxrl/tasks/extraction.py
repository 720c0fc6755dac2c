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
from cvxrl.tasks.sandbox import Sandbox, Saw

# A minus right after a digit, letter or closing bracket is a subtraction, not a sign: `20-3` ends in 3, `=-3` in -3.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])-)?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)"
)
_SEPARATOR = re.compile(r"(?<=[0-9])(?:\{,\}|\\[,;! ]|['\u00a0\u2009\u202f])(?=[0-9]{3}(?![0-9]))")
_SPACED = re.compile(r"(?<![0-9.,] )(?<![\w.,])[0-9]{1,3}(?: [0-9]{3})++(?![0-9])(?! [0-9])")
# A right answer that is one number with what people write around one.
_GOLD = re.compile(
    r"(?:[A-Za-z]\w*\s*=\s*)?[+$\u20ac\u00a3\u00a5\u20b9\\\s]*"
    r"(?P<number>-?\s?\$?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]*)?|-?\.[0-9]+)"
    r"(?:\s*\\?[%$\u20ac\u00b0]|\s+[A-Za-z][A-Za-z .]*)?\.?"
)
_BOX = re.compile(r"\\boxed\s*\{")
# Between two boxes that are one answer. No two alternatives begin alike, so it takes time proportional to the text.
_BETWEEN = re.compile(
    r"(?:[ \t$,;&]|\\[()\[\],; ]|\\q?quad\b|\\(?:text|mathrm)\s*\{[ ,]*+(?:and|or)?[ ,]*+\}|(?:and|or)\b)*+"
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


def last_boxed(text: str) -> str | None:
    r"""Return what the last `\boxed{...}` holds, braces balanced; none if it is never closed.

    Boxes on one line with nothing between them but `,`, `and` or `or` are one answer: `\boxed{1} and \boxed{2}` gives
    `1, 2`. A box that the reply's end cuts off is not replaced by an earlier one: the reply had not finished answering.
    """
    kept: list[str] = []
    start = -1
    for begin, end, content in reversed(boxed_spans(text)):
        if kept and not _BETWEEN.fullmatch(text, end, start):
            break
        start = begin
        kept.insert(0, content)
    return ", ".join(dict.fromkeys(kept)) if kept else None


def boxed_spans(text: str) -> list[tuple[int, int, str]]:
    """Begin, end and content of the innermost boxes, in order; none if the last one is never closed."""
    spans: list[tuple[int, int, str]] = []
    starts = list(_BOX.finditer(text))
    for number, box in enumerate(starts):
        limit = starts[number + 1].start() if number + 1 < len(starts) else len(text)
        end = _closing_brace(text, box.end(), limit)
        if end is not None:
            spans.append((box.start(), end + 1, text[box.end() : end].strip()))
        elif limit == len(text):
            return []
    return spans


def _closing_brace(text: str, position: int, limit: int) -> int | None:
    """Where the brace closes that was opened before `position`, if before `limit`."""
    depth = 1
    while position < limit:
        character = text[position]
        if character == "\\":
            position += 2  # `\{` and `\}` are printed braces, not grouping
            continue
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return position
        position += 1
    return None


def last_tag(text: str, tag: str) -> str | None:
    """Return what the last `<tag>...</tag>` holds; none if the last tag opened is never closed."""
    opened, closing = f"<{tag}>", f"</{tag}>"
    start = text.rfind(opened)
    if start < 0:
        return None
    start += len(opened)
    end = text.find(closing, start)
    return None if end < 0 else text[start:end].strip()


def last_group(text: str, pattern: str) -> str | None:
    """Return the group of the last match of `pattern`; none if nothing matches or the group took no part."""
    group: str | None = None
    for found in re.finditer(pattern, text):
        group = found.group(1)
    return None if group is None else group.strip()


def _numbers(text: str) -> list[str]:
    return _NUMBER.findall(_separated(text.replace("\N{MINUS SIGN}", "-")))


def _separated(text: str, spaces: bool = False) -> str:
    r"""Text with commas for what else separates thousands: `2{,}125`, `2\,125`, and spaces if asked."""
    text = _SEPARATOR.sub(",", text)
    return _SPACED.sub(lambda found: found[0].replace(" ", ","), text) if spaces else text


def _plain(token: str) -> str:
    """Shorten a number as text: replies hold numbers too long for int() and too exact for float()."""
    sign = "-" if token.startswith("-") else ""
    whole, _, fraction = re.sub(r"[-,$\s]", "", token).partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    size = f"{whole}.{fraction}" if fraction else whole
    return size if size == "0" else sign + size
