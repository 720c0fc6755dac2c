"""The base of every recipe section, strict and frozen, and what a field of one admits."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field

RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$")]

Need = Literal[
    "advantages",  # one per token, of the sampled token
    "demonstrations",  # the task's, instead of rollouts
    "group_advantages",  # those of all samples of the prompt, beside each token
    "old_logits",  # over the vocabulary, of the policy that sampled
    "old_logprobs",  # of the sampled tokens, by the policy that sampled
    "preferences",  # pairs of a chosen and a rejected response, instead of rollouts
    "reference_logprobs",  # of the tokens, by the policy that training started from
]

# Every objective declares these three beside its `equation` and what it `needs`; the engine asks nothing else of it.
# What the loss of a token depends on beside the token itself, and so what must share a forward pass:
Coupling = Literal[
    "token",  # nothing
    "sequence",  # the other tokens of its response
    "group",  # all responses of its prompt
]
# Whether a response without an advantage has a gradient (one without needs no backward pass):
ZeroAdvantage = Literal[
    "no gradient",  # the advantage is a factor of the loss
    "no gradient on-policy",  # the target is the policy that sampled, which pulls back a policy that has moved
    "gradient",
]
# Whether a line search on the loss has something to stop at:
Minimum = Literal[
    "has one",  # bounded below, and its gradient is that of its value
    "none",  # falls without end as some token's probability goes to 0
    "flat",  # beyond a clip, where it is lowest
    "detached",  # its value changes with parts of it through which no gradient flows
]


# Mark of a field that says what is written or shown beside the numbers and cannot change one of them, as in
# `Annotated[int, NEUTRAL]`; on a section it covers all of it. Digests and comparisons of recipes leave such fields out.
# A field that changes as much as the last bit of a sum is not one of them; the section `placement` is, since a run may
# be gone on with on other machines, which change last bits too.
NEUTRAL: Final = "cannot change a result"

# Mark of a field that `--resume` may change: it decides what steps to come do, how far they go, or what is measured of
# them, and no number of the steps that are done. Runs that differ in one are different runs all the same.
AMENDABLE: Final = "leaves the steps that are done as they are"

# Mark of a field that came later and whose default is what was there before it: digests and comparisons of recipes
# leave it out at its default, so that those of older recipes and runs stay what they were.
ADDED: Final = "is no part of a digest at its default"


class Section(BaseModel):
    """A recipe section: unknown keys are errors, values cannot change after loading, NaN is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)


def section_classes(annotation: Any) -> Iterator[type[BaseModel]]:
    """Section classes that a field's annotation admits: itself, the members of a union, or the elements of a list."""
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from section_classes(get_args(annotation)[0])
    elif origin in (Union, types.UnionType, tuple):
        for member in get_args(annotation):
            yield from section_classes(member)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation


def kind_of(section: type[BaseModel]) -> str | None:
    """Tag of a union member, or None."""
    field = section.model_fields.get("kind")
    return str(field.default) if field is not None else None
