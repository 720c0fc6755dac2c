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
from cvxrl.tasks.sandbox import Sandbox

# A minus right after a digit, letter or closing bracket is a subtraction, not a sign: `20-3` ends in 3, `=-3` in -3.
_NUMBER = re.compile(
    r"(?:(?<![\w)\]}])-)?"
    r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)"
)
_BOX = re.compile(r"\\boxed\s*\{")


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
        self._sandbox: Sandbox | None = None
        if isinstance(spec, RegexExtract):
            options = {"pattern": spec.pattern}
            self._sandbox = Sandbox("cvxrl.tasks.judges:pattern", options, spec.timeout_s, spec.memory_mb)

    def extract(self, replies: Sequence[str]) -> list[Extracted]:
        """Extract the answer of each reply, in order."""
        if self._sandbox is None:
            return [Extracted(extract(reply, self._spec)) for reply in replies]
        results = self._sandbox.run([{"reply": reply} for reply in replies])
        return [Extracted(result.get("text"), result.error) for result in results]

    def close(self) -> None:
        """End the process, if there is one."""
        if self._sandbox is not None:
            self._sandbox.close()


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


def canonical(answer: str, spec: ExtractSpec) -> str | None:
    """Write a right answer as the extraction writes a reply's, so that strings can be compared.

    Returns:
        The answer stripped; for the two numeric extractions the number itself, or none if the answer is no
        such number (then no reply could ever be right).
    """
    answer = answer.strip()
    if not isinstance(spec, LastIntegerExtract | LastNumberExtract):
        return answer
    whole = _NUMBER.fullmatch(answer.replace("\N{MINUS SIGN}", "-")) is not None
    return extract(answer, spec) if whole else None


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

    A box that the reply's end cuts off is not replaced by an earlier one: the reply had not finished answering.
    """
    starts = [m.end() for m in _BOX.finditer(text)]
    if not starts:
        return None
    depth = 1
    position = starts[-1]
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 2  # `\{` and `\}` are printed braces, not grouping
            continue
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return text[starts[-1] : position].strip()
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
    return _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))


def _plain(token: str) -> str:
    """Shorten a number as text: replies hold numbers too long for int() and too exact for float()."""
    sign = "-" if token.startswith("-") else ""
    whole, _, fraction = token.removeprefix("-").replace(",", "").partition(".")
    whole, fraction = whole.lstrip("0") or "0", fraction.rstrip("0")
    size = f"{whole}.{fraction}" if fraction else whole
    return size if size == "0" else sign + size
