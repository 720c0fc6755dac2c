r"""How people write mathematics, brought into the notation that math-verify's parser reads.

math-verify reads most of LaTeX, and misreads a few spellings without saying so: `12 500` is twelve times five hundred,
`2 2/3` is four thirds, `1\,000` is 0, `5.` is nothing. `standard` rewrites those. Everything here is a substitution in
text that takes time proportional to it, since a policy chooses the text.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Final

_SIGNS: Final = str.maketrans(
    {
        "\N{MINUS SIGN}": "-",
        "\N{EN DASH}": "-",
        "\N{NO-BREAK SPACE}": " ",
        "\N{THIN SPACE}": " ",
        "\N{NARROW NO-BREAK SPACE}": " ",
        "\N{MULTIPLICATION SIGN}": r"\times ",
        "\N{MIDDLE DOT}": r"\cdot ",
        "\N{DIVISION SIGN}": r"\div ",
        "\N{DEGREE SIGN}": r"^\circ ",
        "\N{UNION}": r"\cup ",
        "\N{INTERSECTION}": r"\cap ",
        "\N{INFINITY}": r"\infty ",
        "\N{LESS-THAN OR EQUAL TO}": r"\le ",
        "\N{GREATER-THAN OR EQUAL TO}": r"\ge ",
        "\N{NOT EQUAL TO}": r"\ne ",
        "\N{PLUS-MINUS SIGN}": r"\pm ",
        "\N{GREEK SMALL LETTER PI}": r"\pi ",
        "\N{SQUARE ROOT}": r"\sqrt ",
        "\N{EMPTY SET}": r"\emptyset ",
        "\N{SUPERSCRIPT TWO}": "^2",
        "\N{SUPERSCRIPT THREE}": "^3",
        "~": " ",
    }
)
_VULGAR: Final = re.compile("[\u00bc-\u00be\u2150-\u215e]")
_CURRENCY: Final = re.compile(
    r"\\?[$\u00a3\u00a5\u20ac\u20b9]|\\(?:euro|pounds)\b|(?<=[0-9}])\s*(?:(?:US )?dollars?|euros?|USD|EUR|GBP)\b"
)
_FACE: Final = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|boldsymbol|mbox)\s*\{([^{}]*)\}")
# Behind a sign that can only be a separator, or behind spaces, where no fraction may follow: that is a mixed number.
_THOUSANDS: Final = re.compile(
    r"(?<![\w.,{}\\])(?:[0-9]{1,3}(?:(?:\{,\}|\\[,; ]|\\!,?|'|,\\!)[0-9]{3})++(?![0-9])"
    r"|[1-9][0-9]{0,2}(?: [0-9]{3})++(?![0-9/]))"
)


def _improper(found: re.Match[str]) -> str:
    """A mixed number as one fraction, since a percent sign would be taken for that of its fraction alone."""
    whole, numerator, denominator = map(int, found.groups())
    return f"\\frac{{{whole * denominator + numerator}}}{{{denominator}}}"


def _fraction(found: re.Match[str]) -> str:
    """A recurring decimal as a fraction: 0.1(6) is (16 - 1) / 90."""
    whole, first, period = found.groups()
    numerator = int(whole + first + period or "0") - int(whole + first or "0")
    return f"\\frac{{{numerator}}}{{{'9' * len(period) + '0' * len(first)}}}"


# What brings one spelling into another, in this order.
_REWRITINGS: Final[tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...]] = (
    (_THOUSANDS, lambda found: re.sub(r"[^0-9]", "", found[0])),
    (re.compile(r"([0-9])\.(?![0-9.])"), r"\1"),  # 5. and -3./2
    (re.compile(r"(?<![\w.}])([0-9]{1,30})\s+([0-9]{1,30})\s?/\s?([0-9]{1,30})(?![\w.])"), _improper),
    (re.compile(r"(?<![\w.])([0-9]+(?:\.[0-9]+)?)[eE]([+-]?[0-9]+)(?!\w)"), r"\1\\times 10^{\2}"),
    (re.compile(r"([0-9])\s+(i)(?![A-Za-z])"), r"\1\2"),
    (re.compile(r"\\varnothing(?![A-Za-z])"), r"\\emptyset"),
    (re.compile(r"\\degree(?![A-Za-z])"), r"^\\circ"),
    (re.compile(r"(?<!\\)\\text\s*\{([^{}]*\b(?:and|or)\b[^{}]*)\}"), r"\1"),
    (
        re.compile(r"\\begin\{cases\}((?:(?!\\end\{).){0,500})\\end\{cases\}", re.DOTALL),
        lambda found: found[1].replace(r"\\", ","),
    ),
    # Units in more than one letter; math-verify knows those without exponent or quotient.
    (
        re.compile(
            r"(?<=[0-9}])\s++(?:mm|cm|dm|km|m|in|ft|yd|mi|kg|g)(?:\^\{?[23]\}?|/(?:sec|min|hr|s|h|l|L|kg|g)\b)\s*\Z"
        ),
        "",
    ),
    (re.compile(r"\\(?:mathrm|text|operatorname|rm)\s*\{\s*([eid])\s*\}"), r"\1"),
    (re.compile(r"\\(?:text|math)(?:bf|it|rm)?\s*\{\s*(-?[0-9]+(?:\.[0-9]+)?)\s*\}"), r"{\1}"),
    (
        re.compile(r"(?<=[0-9])\s*+(?:\\text\s*+\{\s*+)?([aApP])\.?\s?[mM]\b\.?\s*\}?"),
        lambda found: f"{found[1].lower()}m",
    ),
    (re.compile(r"(?<!\\)%|\\%|(?<=[0-9}])\s*+(?:\\text\s*+\{\s*+)?(?:[Pp]er ?cent(?:age)?|[Pp]ct\.?)\s*\}?"), r"\\%"),
)
_RECURRING: Final = re.compile(r"(?<![0-9])([0-9]{0,30})\.([0-9]{0,30})\\(?:overline|bar|dot)\s*\{([0-9]{1,30})\}")
_PLAIN_NUMBER: Final = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?(?:/[0-9]+)?|\\[dt]?frac\{[0-9]+\}\{[0-9]+\})")
# A word that is no product of variables: four letters or more, or one of the short ones that answer a question.
_WORD: Final = re.compile(r"(?<![A-Za-z])(?:[A-Za-z]{4,}|[Yy]es|[Nn]o|[Oo]dd|YES|NO)(?![A-Za-z])")
_WORDS: Final = re.compile(r"[A-Za-z][A-Za-z ,;.()'-]*")
_FUNCTIONS: Final = re.compile(r"(?:arc)?(?:sin|cos|tan|sec|csc|cot)h?|sqrt|frac|infty|infinity|theta|alpha|beta|gamma")
_LIST: Final = re.compile(r"[,;]|\b(?:and|or)\b")


def standard(text: str) -> str:
    r"""An answer in the parser's notation, dollar signs and currencies left out: `2 2/3` becomes `\frac{8}{3}`."""
    return rewritten(_CURRENCY.sub("", text).strip().rstrip(".").strip())


def rewritten(text: str) -> str:
    """An answer, or a whole reply, in the parser's notation; dollar signs, which mark formulas in a reply, stay."""
    text = _VULGAR.sub(
        lambda found: " " + unicodedata.normalize("NFKC", found[0]).replace("\N{FRACTION SLASH}", "/"), text
    )
    text = _RECURRING.sub(_fraction, text.translate(_SIGNS))
    for pattern, replacement in _REWRITINGS:
        text = pattern.sub(replacement, text)
    return text.strip()


def is_plain_number(text: str) -> bool:
    """Tell whether an answer is an integer, a decimal or a simple fraction, which every parser reads."""
    return _PLAIN_NUMBER.fullmatch(text) is not None


def words_of(text: str) -> tuple[str, ...] | None:
    """The parts of an answer in words, in lower case and sorted; None for mathematics.

    The parser would read words as products of their letters, so that `silent` equals `listen`.
    """
    bare = plain(text)
    if not _WORDS.fullmatch(bare) or not _WORD.search(_FUNCTIONS.sub("", bare)):
        return None
    parts = (" ".join(part.strip(" .()").split()) for part in _LIST.split(bare.casefold()))
    return tuple(sorted(part for part in parts if part))


def plain(text: str) -> str:
    """Text without changes of typeface, spaces that separate no words, and a full stop: what two writers agree on."""
    bare = _CURRENCY.sub("", text.translate(_SIGNS))
    bare = " ".join(_FACE.sub(r" \\1 ".replace(r"\\1", r"\1"), bare).split())
    return re.sub(r"(?<![A-Za-z0-9.]) | (?![A-Za-z0-9.])", "", bare).rstrip(".").strip()


def without_percent(text: str) -> str | None:
    """A percentage in standard notation without its sign; None for anything else."""
    return text.removesuffix(r"\%").strip() if text.endswith(r"\%") else None
