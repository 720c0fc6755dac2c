"""How an answer is found in a reply, as a recipe section."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from cvxrl.recipe.base import Section


class NoExtract(Section):
    """The whole reply is the answer."""

    kind: Literal["none"] = Field("none", description="The whole reply, stripped of white space at both ends.")


class LastIntegerExtract(Section):
    """The last integer of the reply."""

    kind: Literal["last-integer"] = Field(
        "last-integer",
        description="The last integer of the reply, without thousands separators; decimals are skipped.",
    )


class LastNumberExtract(Section):
    """The last number of the reply, integer or decimal."""

    kind: Literal["last-number"] = Field(
        "last-number", description="The last integer or decimal of the reply; 72.00 counts as 72."
    )


class BoxedExtract(Section):
    r"""What the last `\boxed{...}` of the reply holds."""

    kind: Literal["boxed"] = Field(
        "boxed", description="The content of the last `\\boxed{...}`; one that is never closed is no answer."
    )


class TagExtract(Section):
    """What the last `<tag>...</tag>` of the reply holds."""

    kind: Literal["tag"] = Field("tag", description="The content of the last complete pair of tags.")
    tag: str = Field("answer", pattern=r"^[A-Za-z][A-Za-z0-9_-]*$", description="Name of the tag, without brackets.")


class RegexExtract(Section):
    """What a regular expression picks out of the reply."""

    kind: Literal["regex"] = Field("regex", description="The group of the last match of a regular expression.")
    pattern: str = Field(description="Python regular expression with exactly one group.")
    timeout_s: PositiveFloat = Field(
        5.0, description="Seconds that one reply may take, which patterns like (a+)+b need; a late one is an error."
    )
    memory_mb: PositiveInt = Field(512, description="MiB that the searching process may take.")

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, pattern: str) -> str:
        return check_pattern(pattern)


ExtractSpec = Annotated[
    NoExtract | LastIntegerExtract | LastNumberExtract | BoxedExtract | TagExtract | RegexExtract,
    Field(discriminator="kind"),
]


def check_pattern(pattern: str) -> str:
    """Return `pattern` if it compiles and has exactly one group.

    Raises:
        ValueError: it does not compile, or has another number of groups.
    """
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"`{pattern}` is not a regular expression: {error}") from None
    if groups != 1:
        raise ValueError(
            f"`{pattern}` needs exactly one group in parentheses, it has {groups}; (?:...) does not capture"
        )
    return pattern
