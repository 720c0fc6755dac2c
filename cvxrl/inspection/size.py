"""How large an inspection is, before anything of it is loaded: completions, tokens, logits kept. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cvxrl.engine.device import physical_memory
from cvxrl.engine.sizes import shape_of
from cvxrl.errors import Problem
from cvxrl.recipe.schema import Recipe
from cvxrl.report.format import size as in_bytes

# Copies of the logits of every response token that are held at once: of the policy that sampled, its log-softmax, and
# that after a step; float32.
_COPIES, _BYTES = 3, 4
# Completions above which an inspection is taken for a slip where nothing is known of the vocabulary.
_MOST_COMPLETIONS = 10**6
# Hours above which it needs to be asked for twice.
MOST_HOURS = 24.0


@dataclass(frozen=True)
class Size:
    """What an inspection of one checkpoint holds.

    Attributes:
        completions: sampled.
        tokens: at most, if no completion ends before its limit.
        logits: bytes that the logits of these tokens take; None where the vocabulary is not known before loading.
    """

    completions: int
    tokens: int
    logits: int | None

    @classmethod
    def of(cls, recipe: Recipe) -> Size:
        """Size under a recipe.

        Raises:
            UserError: the policy's files do not exist.
        """
        rollout, shape = recipe.rollout, shape_of(recipe.model)
        completions = rollout.prompts * rollout.samples
        tokens = completions * rollout.max_new_tokens
        return cls(completions, tokens, tokens * shape.vocab * _COPIES * _BYTES if shape else None)

    @property
    def text(self) -> str:
        """In words."""
        logits = "" if self.logits is None else f", their logits up to {in_bytes(self.logits)}"
        return f"{self.completions:,} completions, at most {self.tokens:,} tokens{logits}"

    def problems(self) -> Iterator[Problem]:
        """Whether it is beyond this machine, or beyond what anyone means."""
        memory = physical_memory()
        if self.logits is not None and memory is not None and self.logits > memory:
            what = f"{self.text}, but this machine has {in_bytes(memory)} of memory"
            fits = max(1, int(self.completions * memory / self.logits))
            yield Problem(what, "--prompts", remedy=f"take {fits:,} completions or fewer, or add --yes to try")
        elif self.completions > _MOST_COMPLETIONS:
            remedy = f"take {_MOST_COMPLETIONS:,} completions or fewer, or add --yes"
            yield Problem(f"{self.text}, of each checkpoint", "--prompts", remedy=remedy)
