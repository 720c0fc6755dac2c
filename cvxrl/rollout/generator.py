"""The seam between whoever wants completions and whatever makes them: prompts and stream keys in, episodes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from cvxrl.errors import UserError
from cvxrl.policy.model import Policy
from cvxrl.rollout.randomness import StreamKey


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        max_new_tokens: longest completion.
        temperature: the logits are divided by it; 0 takes the most probable token.
        top_p: nucleus mass; the reported log-probabilities are those of the truncated, renormalised distribution.
        stop_ids: tokens that end a completion, beside the policy's own: those that end a turn of the template.
    """

    max_new_tokens: int
    temperature: float
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Episode:
    """One prompt with one completion.

    For the prompt "7+5?" answered with "7+5=12" and the end token, ``response_ids`` has 7 entries and ``logprobs`` as
    many; ``truncated`` is False because the end token came before the length limit.

    Attributes:
        prompt_ids: token ids of the rendered prompt.
        response_ids: sampled token ids, the end token included if it was reached.
        logprobs: log-probability of each sampled token under the distribution it was drawn from, on the CPU, [T].
        truncated: the completion reached the length limit without an end token.
        version: optimizer updates (outer steps) that the policy which sampled it had seen; see `Generator.sync`.
    """

    prompt_ids: list[int]
    response_ids: list[int]
    logprobs: Tensor
    truncated: bool
    version: int = 0


class SamplerLost(UserError):
    """What makes completions is gone or cannot be trusted.

    Attributes:
        everywhere: whether it is raised in all processes, so that they can save together.
        amid_step: whether the policy has moved since the last whole step, of which there is nothing left to save.
    """

    everywhere = False
    amid_step = False

    def leaves_whole(self, processes: int) -> bool:
        """Whether ``processes`` processes can save the last whole step."""
        return not self.amid_step and (self.everywhere or processes == 1)


class Generator(Protocol):
    """Makes completions: the decoders of this machine (`LocalGenerator`), or a server."""

    def generate(
        self, prompts: Sequence[list[int]], keys: Sequence[Sequence[StreamKey]], sampling: Sampling
    ) -> list[Episode]:
        """One completion per key, those of a prompt adjacent.

        A completion depends on its prompt, its key, the sampling and the policy; not on what else is asked, nor on how
        the work is split, beyond the rounding of the forward pass.

        Args:
            prompts: token ids of P prompts.
            keys: for each prompt, the streams of its completions; at least one.
            sampling: how tokens are drawn.
        """
        ...

    def sync(self, policy: Policy, version: int) -> Mapping[str, float]:
        """Sample from these weights from now on, and mark episodes with ``version``; called by all processes.

        Returns:
            What to log of it, by metric: nothing where the weights are at hand as they are.
        """
        ...
