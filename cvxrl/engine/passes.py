"""Lengths of a step's sequences before any of them exists, and the largest forward pass over them (no torch here)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cvxrl.engine.micro_batches import Limit, by_length, whole_groups
from cvxrl.engine.placed import Placed
from cvxrl.errors import UserError
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.task import MadeSource
from cvxrl.tasks import load_task

# A prompt whose length is not known before its task and the tokenizer are loaded.
_ASSUMED_PROMPT_TOKENS = 48
# Sequences of a step that are looked at one by one; the rest are taken to be like them.
_LOOKED_AT = 8192


@dataclass(frozen=True)
class Lengths:
    """Tokens of a rank's prompts of a step and of their responses, one by one; of a large step, its beginning."""

    prompts: Sequence[int]
    responses: Sequence[int]

    @classmethod
    def of(cls, recipe: Recipe, placed: Placed | None = None) -> Lengths:
        """As a built-in task's demonstrations, a token per character; of other tasks, a guess and the limit."""
        placed = placed or Placed.of(recipe)
        source, limit, group = recipe.task.source, recipe.rollout.max_new_tokens, recipe.group_size
        count = min(placed.sequences, _LOOKED_AT)
        if not isinstance(source, MadeSource) or recipe.task.template != "none" or recipe.task.instruction:
            return cls([_ASSUMED_PROMPT_TOKENS] * count, [limit] * count)
        task = load_task(recipe.task, recipe.seed)
        drawn = [task.train(i) for i in range(-(-count // group))]
        examples = [drawn[i // group] for i in range(count)]
        responses = [min(limit, len(e.demonstration or "") + 1) for e in examples]
        return cls([len(e.prompt) for e in examples], responses)


@dataclass(frozen=True)
class Pass:
    """The largest forward pass with gradient.

    Attributes:
        sequences: in it.
        tokens: that run through the layers, padding included.
        attended: keys that queries of the pass look at, summed over its rows.
        responses: tokens with a loss.
    """

    sequences: int
    tokens: int
    attended: int
    responses: int

    @classmethod
    def of(cls, recipe: Recipe, lengths: Lengths, placed: Placed | None = None) -> Pass:
        """The fullest of the passes that one optimizer step of a rank is split into."""
        placed = placed or Placed.of(recipe)
        parts = _split(recipe, lengths, placed)
        fullest = max((cls._of(recipe, lengths, part) for part in parts), key=lambda run: run.tokens)
        if len(parts) > 1 or fullest.sequences == placed.fullest:
            return fullest
        # Everything at once, and more than was looked at.
        times = placed.fullest / fullest.sequences
        counts = (fullest.tokens, fullest.attended, fullest.responses)
        return cls(placed.fullest, *(round(times * count) for count in counts))

    @classmethod
    def _of(cls, recipe: Recipe, lengths: Lengths, part: Sequence[int]) -> Pass:
        responses = sum(lengths.responses[i] for i in part)
        if recipe.train.gradient_checkpointing:  # every row runs its own prompt, and all are padded
            tokens = len(part) * (max(lengths.prompts[i] for i in part) + max(lengths.responses[i] for i in part))
            return cls(len(part), tokens, tokens, responses)
        once = {i // recipe.group_size: lengths.prompts[i] for i in part}
        tokens = sum(once.values()) + responses
        return cls(len(part), tokens, tokens + sum(lengths.prompts[i] for i in part), responses)


def _split(recipe: Recipe, lengths: Lengths, placed: Placed) -> list[list[int]]:
    prompts, responses = ([range(n) for n in some] for some in (lengths.prompts, lengths.responses))
    share, limit = max(1, len(prompts) * placed.fullest // placed.sequences), Limit.of(recipe.train)
    prompts, responses = prompts[:share], responses[:share]
    try:
        if recipe.objective.coupling == "group":
            groups = [i // recipe.group_size for i in range(share)]
            return list(whole_groups(prompts, responses, groups, limit))
        return list(by_length(prompts, responses, limit))
    except UserError:  # where lengths are guessed, the first step is to refuse them
        return [[i] for i in range(share)]
