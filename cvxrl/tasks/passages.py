"""Passages of a reply by what encloses them: boxes, tags, and groups of a pattern.

The process that grades looks for them too. So that it starts quickly, no library is loaded for them.
"""

from __future__ import annotations

import re

_BOX = re.compile(r"\\boxed\s*\{")
# Between two boxes that are one answer. No two alternatives begin alike, so it takes time proportional to the text.
_BETWEEN = re.compile(
    r"(?:[ \t$,;&]|\\[()\[\],; ]|\\q?quad\b|\\(?:text|mathrm)\s*\{[ ,]*+(?:and|or)?[ ,]*+\}|(?:and|or)\b)*+"
)


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
