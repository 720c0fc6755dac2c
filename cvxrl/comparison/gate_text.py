"""The text of a `--require` from left to right: its numbers, words, signs and names; between them, spaces mean nothing.

number := as in Python, without a sign
word   := letters of ASCII and "_"
name   := any text in one kind of quotes without that kind
        | letters and digits of any script, "." "_" "@" "-", and behind it a value in brackets, which may hold a list's
"""

from __future__ import annotations

import re

_NUMBER = re.compile(r"\d+\.?\d*([eE][-+]?\d+)?|\.\d+([eE][-+]?\d+)?", re.ASCII)
_WORD = re.compile(r"[A-Za-z_]+")
_NAME = re.compile(r"[^\W_][\w.@-]*(\[([^\[\]]|\[[^\[\]]*\])*\])?")
_QUOTED = re.compile(r"\"[^\"]+\"|'[^']+'")


class MalformedError(Exception):
    """The text does not follow the grammar."""


class Scanner:
    """A place in a text, moved on by what is found there.

    Attributes:
        text: the whole.
        at: the place, which may be put back.
    """

    def __init__(self, text: str) -> None:
        """Begin at the start."""
        self.text = text
        self.at = 0

    def rest(self) -> str:
        """What is left, without spaces in front."""
        stripped = self.text[self.at :].lstrip()
        self.at = len(self.text) - len(stripped)
        return stripped

    def number(self) -> str | None:
        """A number, if one stands here."""
        return self._match(_NUMBER)

    def word(self) -> str | None:
        """A word, if one stands here."""
        return self._match(_WORD)

    def name(self) -> str:
        """The name that has to stand here.

        Raises:
            MalformedError: it does not.
        """
        quoted = self._match(_QUOTED)
        if quoted is not None:
            return quoted[1:-1]
        plain = self._match(_NAME)
        if plain is not None:
            return plain
        rest = self.rest()
        if rest[:1] in ("'", '"') and rest[0] not in rest[1:]:
            raise MalformedError(f"nothing closes the quote before `{rest[1:21]}`")
        raise self.expected("the name of a method")

    def one_of(self, tokens: tuple[str, ...]) -> str | None:
        """The first of these that stands here, if any."""
        rest = self.rest()
        found = next((t for t in tokens if rest.startswith(t)), None)
        self.at += len(found or "")
        return found

    def must(self, token: str) -> None:
        """Pass over what has to stand here.

        Raises:
            MalformedError: it does not.
        """
        if self.one_of((token,)) is None:
            raise self.expected(f"`{token}`")

    def expected(self, what: str) -> MalformedError:
        """The error that something else stands here."""
        rest = self.rest()
        return MalformedError(f"expected {what} " + (f"at `{rest[:20]}`" if rest else "at the end"))

    def _match(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self.rest())
        self.at += found.end() if found else 0
        return found.group() if found else None
