"""Which short ways to a model's logits agree with its own forward pass, found by trying them on a few random tokens.

The model's own forward pass, on one sequence at a time, without padding, cache or anything else, is the authority. A
short way (the pass written out, prompts run once, padding, the output matrix applied to hidden states) is taken where
it gives the same logits up to rounding, and left where it does not. No family and no key of a configuration is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from cvxrl.policy.agreement import difference, logit_tolerance
from cvxrl.policy.forward import packed_rows
from cvxrl.policy.plain import is_checkpointing, is_untouched
from cvxrl.policy.probe import Probe, tried
from cvxrl.policy.rows import can_share_prompts, logit_rows, shared_prompts, whole_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rows = Sequence[Sequence[int]]
# How descriptions of ways begin that cost more than a forward pass has to.
SLOW = "slow path"
Way = Callable[["PreTrainedModel", Rows, Rows], Tensor]


@dataclass(frozen=True)
class Ways:
    """The short ways that agree.

    Attributes:
        packed: the pass written out, tokens packed without padding (`policy.forward`).
        shared: every different prompt run once, its keys and values serving all its responses.
        padded: sequences of unequal length in one pass, padded on the right.
        head: logits are the output layer applied to the last hidden states.
        states: the model gives its last hidden states.
    """

    packed: bool
    shared: bool
    padded: bool
    head: bool
    states: bool

    def describe(self) -> str:
        """One line for people."""
        if self.packed:
            return "written out and packed, prompts run once"
        if not self.padded:
            return f"{SLOW}: one length at a time, without padding"
        how = "padded on the right" + (", prompts run once" if self.shared else "")
        return how if self.head else f"{SLOW}: logits of the model's own forward pass at every position, {how}"


def hidden_states(model: PreTrainedModel, prompts: Rows, responses: Rows, ways: Ways) -> Tensor:
    """Hidden states that predict each response token, the cheapest way that agrees.

    Args:
        model: a causal language model.
        prompts: token ids of S prompts, none empty.
        responses: token ids of S responses, none empty.
        ways: what agrees for this model.

    Returns:
        [sum of response lengths, H], sequence after sequence.
    """
    if ways.packed and is_untouched(model) and not is_checkpointing(model):
        return packed_rows(model, prompts, responses)
    if not ways.padded:
        return whole_rows(model, prompts, responses, padded=False)
    repeated = 2 * len(set(map(tuple, prompts))) <= len(prompts)
    if ways.shared and repeated and can_share_prompts(model):
        return shared_prompts(model, prompts, responses)
    return whole_rows(model, prompts, responses)


def compare_ways(model: PreTrainedModel, probe: Probe, theirs: Tensor, candidates: Ways) -> Ways:
    """Those of the candidates that agree with the model's own forward pass.

    Args:
        model: undisturbed (`policy.probe`).
        probe: sequences to compare on.
        theirs: logits of the own pass at the probe's places.
        candidates: what is tried; what is false stays so.
    """
    limit, rows = logit_tolerance(model), (probe.prompts, probe.responses)
    places = probe.places.to(theirs.device)

    def agrees(way: Way) -> bool:
        mine = tried(lambda: model.get_output_embeddings()(way(model, *rows)[places]))
        return difference(mine, theirs) <= limit

    if not candidates.head:
        padded = candidates.padded and difference(tried(lambda: logit_rows(model, *rows)[1][places]), theirs) <= limit
        return Ways(False, False, padded, False, candidates.states and _gives_states(model, probe, padded))
    padded = candidates.padded and agrees(whole_rows)
    packed = candidates.packed and agrees(packed_rows)
    # Where the pass is written out, prompts run once in it.
    shared = candidates.shared and padded and not packed and agrees(shared_prompts)
    return Ways(packed, shared, padded, True, True)


def _gives_states(model: PreTrainedModel, probe: Probe, padded: bool) -> bool:
    """Whether there are hidden states of the body, and padding leaves them as they are if it leaves the logits."""
    rows = probe.prompts, probe.responses
    alone = tried(lambda: whole_rows(model, *rows, padded=False))
    if not padded:
        return bool(alone.numel())
    mine = tried(lambda: whole_rows(model, *rows))
    return bool(alone.numel()) and difference(mine, alone) <= logit_tolerance(model)
