"""A second copy of what samples, so that a rollout can be made by weights that stand still while others are updated."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import nn

from cvxrl.engine.credit import Critic
from cvxrl.policy.model import Policy


@dataclass(frozen=True)
class Second:
    """Policy and critic beside those that are trained.

    Attributes:
        policy, critic: the copies; tokenizer, frozen weights and buffers are shared with
        trained, trained_critic: what they are copies of.
    """

    policy: Policy
    critic: Critic | None
    trained: Policy
    trained_critic: Critic | None

    @classmethod
    def of(cls, policy: Policy, critic: Critic | None) -> Second:
        """A copy of what training moves, in memory of its own."""
        model = policy.model
        still = [*(p for p in model.parameters() if not p.requires_grad), *model.buffers()]
        copied = copy.deepcopy(model, {id(tensor): tensor for tensor in still})
        return cls(replace(policy, model=copied), copy.deepcopy(critic), policy, critic)

    @torch.no_grad()
    def refresh(self) -> Policy:
        """The copy with the weights of now; called while nobody samples from it."""
        pairs: list[tuple[nn.Module, nn.Module]] = [(self.policy.model, self.trained.model)]
        if self.critic is not None and self.trained_critic is not None:
            pairs.append((self.critic, self.trained_critic))
        with self.trained.whole():
            for mine, theirs in pairs:
                trained = dict(theirs.named_parameters())
                for name, parameter in mine.named_parameters():
                    if parameter.requires_grad:
                        parameter.copy_(trained[name])
            self._look_at_the_same()
        return self.policy

    def _look_at_the_same(self) -> None:
        """One copy takes the ways to its logits that the other one takes, whoever met the longer sequences."""
        both = self.policy.checked, self.trained.checked
        for one, other in (both, both[::-1]):
            if other.shortest is not None:
                one.cover(other.shortest, other.longest)
