"""What has been compared with a model's own forward pass: a few tokens at load, later the lengths of the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cvxrl.errors import Problem, UserError
from cvxrl.policy.agreement import logit_tolerance
from cvxrl.policy.plain import is_plain
from cvxrl.policy.probe import (
    Probe,
    Vocabulary,
    apart_behind_prompt,
    head_agrees,
    own_logits,
    require_one_probability,
    undisturbed,
)
from cvxrl.policy.rows import can_share_prompts
from cvxrl.policy.ways import Ways, compare_ways

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Lengths of the prompts and responses that are tried at load: unequal, two of one prompt.
_PROMPTS, _RESPONSES = (4, 9, 4), (7, 3, 2)


@dataclass
class Checked:
    """The short ways that agree, and the lengths of sequences for which that was looked at.

    Attributes:
        model: the policy's.
        vocabulary: what probes are made of.
        ways: those that agree.
        shortest, longest: tokens of the shortest prefix and the longest sequence of the run that were looked at.
        decoders: for `rollout`, which remembers here what it samples through, and for which lengths that was tried.
    """

    model: PreTrainedModel
    vocabulary: Vocabulary
    ways: Ways
    shortest: int | None = None
    longest: int = 0
    decoders: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, model: PreTrainedModel, vocabulary: Vocabulary) -> Checked:
        """Try the short ways on a few tokens.

        Raises:
            UserError: the own forward pass cannot be used: it fails on token ids alone, differs from pass to pass, or
                lets a token see those after it.
        """
        probe = Probe.random(vocabulary, _PROMPTS, _RESPONSES)
        with undisturbed(model):
            head = head_agrees(model, probe.prompts[1])
            theirs = own_logits(model, probe, head=False)
            require_one_probability(model, probe, theirs)
            candidates = Ways(is_plain(model), can_share_prompts(model), True, head, True)
            return cls(model, vocabulary, compare_ways(model, probe, theirs, candidates))

    def cover(self, shortest: int, longest: int) -> None:
        """Look at sequences of the lengths that are about to be used, unless that has been done.

        What changes at some length (windows, positions that are scaled from there on) cannot be seen in a few tokens.

        Args:
            shortest: tokens of the shortest prompt.
            longest: tokens of the longest sequence that is read, prompt and all but the last token of its response.

        Raises:
            UserError: tokens have other probabilities in a long sequence than in a short one.
        """
        if self.shortest is not None and self.shortest <= shortest and longest <= self.longest:
            return
        shortest = min(shortest, self.shortest or shortest)
        longest = max(longest, self.longest, shortest + 1)
        prompts = (shortest, min(shortest + 1, longest - 1), shortest)
        probe = Probe.random(self.vocabulary, prompts, (longest - shortest + 1, 2, 1))
        limit = logit_tolerance(self.model)
        with undisturbed(self.model):
            theirs = own_logits(self.model, probe, self.ways.head)
            if not apart_behind_prompt(probe, theirs) <= limit:
                raise self._too_long(probe, shortest, longest)
            self.ways = compare_ways(self.model, probe, theirs, self.ways)
        self.shortest, self.longest = shortest, longest

    def _too_long(self, probe: Probe, shortest: int, longest: int) -> UserError:
        """The refusal, with the longest sequence that would do."""
        good, bad = shortest, longest
        while bad - good > 1:
            middle = (good + bad) // 2
            response = probe.responses[0][: middle - shortest + 1]
            ends = probe.places.new_tensor([0, len(response)])
            shorter = Probe([probe.prompts[0]] * 2, [response, response[:1]], ends)
            found = apart_behind_prompt(shorter, own_logits(self.model, shorter, self.ways.head))
            good, bad = (middle, bad) if found <= logit_tolerance(self.model) else (good, middle)
        return UserError(
            Problem(
                f"this {type(self.model).__name__} gives a token another probability in sequences of more than {good} "
                f"tokens, and prompts and responses would be of {shortest} to {longest + 1}: no token that is sampled "
                "before that length has one probability",
                "rollout.max_new_tokens",
                remedy=f"keep prompt and response within {good} tokens together, or take a model whose positions do "
                "not depend on the length",
            )
        )
