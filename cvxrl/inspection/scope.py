"""What is measured of a checkpoint, given its size, and how much work that is."""

from __future__ import annotations

from dataclasses import dataclass

from cvxrl.gradients.logit_space import Rules
from cvxrl.inspection.checkpoint import LoadedCheckpoint
from cvxrl.inspection.measure_direction import BACKWARD_PASSES, LINE_PASSES, SHARES
from cvxrl.inspection.measure_gradients import BANDS
from cvxrl.inspection.options import COSTLY_PARTS, PARTS, QUICK_PARTS, Part
from cvxrl.inspection.plan import FEWEST_MINIBATCHES, InspectionPlan
from cvxrl.recipe.step import LineSearchStep

# From here on a model is large: costly parts are left out or measured on a part of the rollouts, and it is said.
LARGE = 20_000_000
# Tokens of a micro-batch whose eigenvalues are computed: each is a bisection over the vocabulary, so that this many
# numbers of the logits, but at least this many tokens, are looked at. The signs, which the shares count, are those of
# all tokens.
_EIGENVALUE_NUMBERS, _EIGENVALUE_TOKENS = 2**23, 256
# Passes over a sequence, in forward passes: for progress alone.
LOOK, STEP, SPLIT, PRODUCT = 2, 3, 6, 6


@dataclass(frozen=True)
class Scope:
    """What is measured of a checkpoint, given its size.

    Attributes:
        parts: names of the parts.
        large: whether the model is.
        rules: of logit space.
        line_passes: forward passes of the line search.
        minibatches: whose gradients are held beside each other.
        notes: what was left out.
    """

    parts: tuple[Part, ...]
    large: bool
    rules: Rules
    line_passes: int
    minibatches: int
    notes: list[str]


def scope_of(plan: InspectionPlan, loaded: LoadedCheckpoint) -> Scope:
    """What the model's size allows."""
    large = sum(p.numel() for p in loaded.trainable.values()) > LARGE
    parts, notes = _parts(plan, large)
    if large and "bands" in parts:
        notes.append("the gradient by probability is measured on one minibatch: the model is large")
    drawn = max(_EIGENVALUE_TOKENS, _EIGENVALUE_NUMBERS // loaded.policy.model.get_output_embeddings().weight.shape[0])
    if "logits" in parts and drawn < sum(map(len, loaded.rollouts.responses)):
        notes.append(f"eigenvalues in the logits are those of at most {drawn} sampled tokens of each micro-batch")
    if "logits" in parts and plan.options.drift and not loaded.own.named.own:
        notes.append(
            f"the drift is that of {loaded.own.label}: the run's own objective needs the values of a critic, which the "
            "checkpoint does not have"
        )
    passes = LINE_PASSES // 3 * 2 if large else LINE_PASSES
    count = plan.minibatches
    if large and plan.options.minibatches is None and count % FEWEST_MINIBATCHES == 0:
        count = FEWEST_MINIBATCHES
    return Scope(parts, large, Rules(eigenvalue_tokens=drawn), passes, count, notes)


def _parts(plan: InspectionPlan, large: bool) -> tuple[tuple[Part, ...], list[str]]:
    """The parts in their usual order, and notes on those that a large model has to be asked for."""
    usual = QUICK_PARTS if len(plan.checkpoints) > 1 else PARTS
    parts = {*(plan.parts or usual)}
    if plan.walk is None:
        parts -= {"reuse"}
    left = [part for part in COSTLY_PARTS if part in parts and part not in plan.also]
    if plan.parts is not None or not large:
        left = []
    parts = parts - {*left} | {*plan.also}
    notes = [f"no {part}: the model is large; ask for them with --parts" for part in left]
    return tuple(part for part in PARTS if part in parts), notes


def along_the_step(scope: Scope) -> int:
    """Forward passes that the parts along an objective's own step make at most."""
    search = 2 * scope.line_passes + LineSearchStep().max_evaluations if "sharpness" in scope.parts else 0
    return search + (len(SHARES) if "direction" in scope.parts else 0) + BACKWARD_PASSES


def work(plan: InspectionPlan, scope: Scope, sequences: int) -> int:
    """Progress units of one checkpoint."""
    count, small = len(plan.objectives), sequences // scope.minibatches
    costs = {
        "logits": count * LOOK * (2 if plan.options.drift else 1) * sequences + plan.options.drift * STEP * sequences,
        "gradients": count * SPLIT * sequences,
        "bands": count * BANDS * STEP * (small if scope.large else sequences),
        "update": count * STEP * sequences * (2 if "logits" in scope.parts and not scope.large else 1),
        "sharpness": count * along_the_step(scope) * sequences,
        "curvature": count * (plan.options.lanczos + plan.options.probes) * PRODUCT * small,
    }
    if plan.walk is not None:
        stepped = plan.walk.updates * (sequences // plan.walk.minibatches)
        costs["reuse"] = count * STEP * (stepped + len(plan.walk.looks) * sequences)
    if "direction" in scope.parts and "sharpness" not in scope.parts:
        costs["direction"] = count * along_the_step(scope) * sequences
    return sum(cost for part, cost in costs.items() if part in scope.parts)
