"""A second, strict grader: string equality, so that the verdicts of the task's own grader can be doubted.

It asks more of a reply than the task does. The reply must be finished, must state its answer in the form asked for,
and the text must equal the right answer character for character. Where the task's grader says right and this one says
wrong, the reply may be right in another notation, or the task's grader may have been talked into it; a rate that
differs between two policies is a reason to read samples.
"""

from __future__ import annotations

import re

from cvxrl.recipe.extract import ExtractSpec, LastIntegerExtract, LastNumberExtract, NoExtract
from cvxrl.tasks.extraction import last_boxed

# A number that ends the reply, after a space, `=`, `:` or `$`. Replies can be hostile: nothing in it can be matched in
# two ways, so that it takes time proportional to the reply.
_FINAL_NUMBER = re.compile(r"(?:^|[\s=:$])(-?[0-9]++(?:\.[0-9]++)?)\Z")


def strictly_correct(
    completion: str, answer: str, extraction: ExtractSpec, truncated: bool, extracted: str | None
) -> bool:
    r"""Tell whether a reply ends by stating exactly the right answer.

    Args:
        completion: the reply.
        answer: the right answer; dollar signs around it are left out.
        extraction: how the task finds an answer. Numbers must end the reply; a box, a tag or a pattern must hold the
            answer; without extraction the last `\boxed{}` counts, or else the whole reply.
        truncated: whether the reply reached the length limit; then it is wrong.
        extracted: what the task found in it.
    """
    if truncated:
        return False
    match extraction:
        case LastIntegerExtract() | LastNumberExtract():
            # Only a full stop or a closing dollar may follow the number.
            found = _FINAL_NUMBER.search(completion.rstrip().rstrip(".$").rstrip())
            stated = found.group(1) if found else None
        case NoExtract():
            boxed = last_boxed(completion)
            stated = completion.strip() if boxed is None else boxed
        case _:
            stated = extracted
    return stated is not None and _bare(stated) == _bare(answer)


def _bare(text: str) -> str:
    return text.strip().strip("$").strip()
