"""Sequences whose share of the gradient is zero whatever the policy says of them, so that no backward pass is needed.

A group whose rewards are all the same teaches nothing: its advantages are zero. It stays in the batch, in the weights
of the reduction and in the metrics; only the backward pass, two thirds of the work, is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

from cvxrl.engine.assemble import Memory
from cvxrl.engine.experience import Experience
from cvxrl.recipe.lco import LcoKldSpec, LcoSpec, TopKFillSupport
from cvxrl.recipe.objective import ObjectiveSpec
from cvxrl.recipe.policy_gradient import CispoSpec, GrpoSpec, GspoSpec, ReinforceSpec
from cvxrl.recipe.schema import Recipe


def split_resting(
    recipe: Recipe, experience: Experience, indices: Sequence[int], memory: Memory
) -> tuple[list[int], list[int]]:
    """``indices`` that move the policy, and those that cannot, each in their order.

    Args:
        recipe: names objective, advantage and regulariser.
        experience: the step's data.
        indices: the sequences of an optimizer step.
        memory: tells whether the policy has moved since it sampled.
    """
    credit, extra = experience.credit, recipe.regularizer
    # Each of these pulls on a token without an advantage: a critic's own loss, scores of single tokens, penalties.
    pulled = credit is None or credit.group_PG is None or credit.values is not None or credit.dense is not None
    if pulled or extra.kl_coefficient or extra.entropy_coefficient or not _rests(recipe.objective, memory):
        return list(indices), []
    assert credit is not None and credit.group_PG is not None
    idle_P = (credit.group_PG == 0).all(dim=1).tolist()
    moving: list[int] = []
    resting: list[int] = []
    for i in indices:
        (resting if idle_P[i // experience.group_size] else moving).append(i)
    return moving, resting


def _rests(objective: ObjectiveSpec, memory: Memory) -> bool:
    """Whether a zero advantage leaves no gradient."""
    match objective:
        case GrpoSpec() | GspoSpec() | CispoSpec() | ReinforceSpec():
            return True  # the advantage is a factor of the loss
        case LcoKldSpec(support=TopKFillSupport()):
            return False  # its target differs from the policy even then
        case LcoSpec():
            # The target is the policy that sampled, which pulls the current one back once it has moved.
            return memory.logits is None and memory.hidden is None
        case _:
            return False
