"""Of a sharded policy every process makes as many passes with gradient: each gathers what the others hold.

One that has fewer micro-batches than another, or no sequence at all in a minibatch, makes passes that count nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from cvxrl.engine.readers import Reader
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.world import World
from cvxrl.errors import Problem, UserError


def most_passes(reader: Reader, world: World, passes: Sequence[Sequences], still: Sequences) -> tuple[int, int]:
    """Passes with gradient of the process that makes most, and sequences without one of that which has most of those.

    Before, every process looks at the lengths of all (`Checked.cover`), so that none does in the middle of a pass.

    Raises:
        UserError: sequences of these lengths need several passes each, which processes cannot make together.
    """
    policy = reader.policy
    assert policy.sharding is not None
    pairs = [pair for part in (*passes, still) for pair in zip(part.prompts, part.responses, strict=True)]
    prompts, read = [len(p) for p, _ in pairs], [len(p) + len(r) - 1 for p, r in pairs]
    known = world.gather((len(passes), len(still), min(prompts, default=None), max(read, default=None)))
    most, resting, shortest, longest = zip(*known, strict=True)
    if any(shortest):
        with policy.whole():
            policy.checked.cover(min(filter(None, shortest)), max(filter(None, longest)))
    if policy.sharding.by_layer and not (policy.ways.packed or policy.ways.padded):
        what = f"this {type(policy.model).__name__} cannot read sequences of these lengths in one pass"
        raise UserError(Problem(what, "placement.shard", remedy="set it to none, or keep sequences shorter"))
    return max(most), max(resting)


def empty_pass(reader: Reader) -> Tensor:
    """Zero, with a gradient of zero for every parameter, from a pass like any other."""
    policy, checked = reader.policy, reader.policy.checked
    token = checked.vocabulary.ordinary[0]
    shortest = Sequences.of([[token] * (checked.shortest or 1)], [[token]], 1)

    def compute() -> Tensor:
        said = reader.hidden(shortest) if policy.ways.head else reader.outputs(shortest).logits_NV
        return 0.0 * said.sum()

    zero: Tensor = policy.run(compute)
    return zero
