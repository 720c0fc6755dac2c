"""The text that each token of a completion adds, so that numbers can be shown where they belong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Text by which each token lengthens what the tokens before it say.

    A token is decoded behind its predecessors, since its text depends on them (a leading space, a letter of several
    tokens). Tokens that end inside a letter add nothing; the one that completes it adds all of it. A special token
    that texts leave out is told by its name.

    Args:
        tokenizer: of transformers.
        ids: of one completion.

    Returns:
        One text per id; without the special ones they join to the decoded completion.
    """
    special = set(tokenizer.all_special_ids)
    texts: list[str] = []
    start = read = 0  # `ids[start:read]` is the shortest context whose text is complete
    for end, id_ in enumerate(ids, 1):
        if id_ in special:
            texts.append(str(tokenizer.convert_ids_to_tokens(id_)))
            continue
        before, after = (_decode(tokenizer, ids[start:stop], special) for stop in (read, end))
        if len(after) > len(before) and (not after.endswith(_INCOMPLETE) or end == len(ids)):
            texts.append(after[len(before) :])
            start, read = read, end
        else:
            texts.append("")
    return texts


def _decode(tokenizer: Any, ids: Sequence[int], special: set[int]) -> str:
    return str(tokenizer.decode([id_ for id_ in ids if id_ not in special]))
