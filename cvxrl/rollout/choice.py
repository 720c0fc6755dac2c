"""Which decoder samples: the fastest whose logits are those of the model's own forward pass, found by trying them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.errors import Problem, UserError
from cvxrl.policy.agreement import difference, logit_tolerance
from cvxrl.policy.model import Policy
from cvxrl.policy.plain import is_untouched
from cvxrl.policy.probe import Probe, own_logits, refusal, tried, undisturbed
from cvxrl.policy.ways import SLOW
from cvxrl.recipe.engine import LocalEngine
from cvxrl.rollout.decoder import ByLength, Decoder, RecomputingDecoder, TransformersDecoder, UnpaddedDecoder
from cvxrl.rollout.plain_decoder import PlainDecoder
from cvxrl.rollout.static_decoder import StaticDecoder

# Tokens that follow each prompt when a decoder is tried, and lengths of the prompts that it is tried on at first.
_STEPS = 3
_PROMPTS = (4, 9, 6)


@dataclass(frozen=True)
class Choice:
    """A way to sample.

    Attributes:
        name: in one line, for people.
        make: a decoder that has read nothing.
    """

    name: str
    make: Callable[[Policy], Decoder]


_PLAIN = Choice("written out, with a key/value cache", PlainDecoder)
_STATIC = Choice("written out, with operations of fixed shape", StaticDecoder)
_OWN = Choice("the model's own forward pass with its cache", TransformersDecoder)
_UNPADDED = Choice(
    f"{SLOW}: the model's own forward pass with its cache, one prompt length at a time",
    lambda policy: ByLength(lambda: UnpaddedDecoder(policy)),
)
_RECOMPUTED = Choice(
    f"{SLOW}: the model's own forward pass over the whole sequence at every token, without a cache",
    lambda policy: ByLength(lambda: RecomputingDecoder(policy)),
)


def require_engine(policy: Policy, engine: LocalEngine) -> None:
    """Refuse an engine that cannot serve this policy.

    Raises:
        UserError: with those that can; or no decoder gives what the model's own forward pass does.
    """
    choose(policy, engine)


def decoder_for(policy: Policy, engine: LocalEngine) -> Decoder:
    """The fastest decoder that computes what the policy's own forward pass does.

    Raises:
        UserError: see `require_engine`.
    """
    return choose(policy, engine).make(policy)


def choose(policy: Policy, engine: LocalEngine) -> Choice:
    """As `decoder_for`; what was found is remembered, and tried again where longer sequences have been looked at.

    Raises:
        UserError: see `require_engine`.
    """
    can_be_plain = policy.ways.packed and is_untouched(policy.model)
    known, lengths = policy.checked.decoders, (policy.checked.shortest, policy.checked.longest)
    key = f"{engine}{'' if can_be_plain else ', not plain'}"
    before, tried_at = known.get(key, (None, None))
    if tried_at != lengths:
        if before is None or not _agrees_at(policy, before, _run_lengths(policy)):
            before = _first_that_agrees(policy, engine, can_be_plain)
        known[key] = before, lengths
    choice: Choice = before
    return choice


def _run_lengths(policy: Policy) -> tuple[int, int, int]:
    """Lengths of prompts that end where the run's longest sequence and its shortest prompt do."""
    checked = policy.checked
    furthest = max(1, checked.longest - _STEPS)
    return furthest, min(checked.shortest or furthest, furthest), furthest


def _agrees_at(policy: Policy, choice: Choice, lengths: tuple[int, int, int]) -> bool:
    """Whether a decoder that served shorter sequences serves these too."""
    with undisturbed(policy.model):
        return _Trial.of(policy, lengths).passes(policy, choice)


def _first_that_agrees(policy: Policy, engine: LocalEngine, can_be_plain: bool) -> Choice:
    candidates = [_OWN, _UNPADDED, _RECOMPUTED]
    if engine != "transformers" and can_be_plain:
        candidates.insert(0, _STATIC if engine == "static" else _PLAIN)
    if engine == "static":
        candidates = candidates[:1]
    lengths = [_PROMPTS] if policy.checked.shortest is None else [_PROMPTS, _run_lengths(policy)]
    with undisturbed(policy.model):
        trials = [_Trial.of(policy, prompts) for prompts in lengths]
        for choice in candidates:
            if engine == "static" and choice is not _STATIC:
                break
            if all(trial.passes(policy, choice) for trial in trials):
                return choice
    if engine == "static":
        raise UserError(
            Problem(
                f"`static` is the forward pass of plain decoders written out, and this {type(policy.model).__name__} "
                "is none, or has changes that it does not know",
                "rollout.engine",
                remedy="write `auto`, which takes the model's own forward pass where it must",
            )
        )
    raise refusal(policy.model, "no way of sampling token by token gives what its forward pass says of the whole")


@dataclass(frozen=True)
class _Trial:
    """Three rows of two prompts with the logits of their next tokens by the model's own forward pass.

    Attributes:
        probe: two prompts, and the tokens that follow each; the third is the first prompt again.
        theirs: logits at these tokens, [row, step, V].
    """

    probe: Probe
    theirs: Tensor

    @classmethod
    def of(cls, policy: Policy, prompts: tuple[int, ...]) -> _Trial:
        probe = Probe.random(policy.checked.vocabulary, prompts, [_STEPS] * len(prompts))
        return cls(probe, own_logits(policy.model, probe, policy.ways.head).view(len(prompts), _STEPS, -1))

    def passes(self, policy: Policy, choice: Choice) -> bool:
        """Whether a decoder gives the same, also after rows have left and changed places."""
        mine = tried(lambda: self._run(choice.make(policy)))
        first, second, third = self.theirs
        theirs = torch.cat([torch.stack([first, third, second])[:, :2].flatten(0, 1), second[2:], first[2:]])
        return difference(mine, theirs) <= logit_tolerance(policy.model)

    def _run(self, decoder: Decoder) -> Tensor:
        """Rows 0 and 2 of one prompt, row 1 of the other, for two tokens; then the last and the first row alone."""
        (a, b, _), (one, other, again) = self.probe.prompts, self.probe.responses
        start = decoder.start([a, b], [2, 1])
        tokens = torch.tensor([one, again, other], device=start.device)
        start = start.clone()  # some decoders overwrite what they return
        said = torch.stack([start, decoder.step(tokens[:, 0]).clone()], dim=1).flatten(0, 1)
        decoder.keep(torch.tensor([2, 0], device=start.device))
        return torch.cat([said, decoder.step(tokens[[2, 0], 1])])
