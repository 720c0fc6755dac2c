"""Whether sampler, trainer and the model's own forward pass give a step's tokens the same probabilities.

A mismatch is no property of the method, so it is neither a divergence nor a failure that a comparison counts: the run
is interrupted and says which field lets it go on.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from cvxrl.engine.readers import Reader
from cvxrl.engine.sequences import Sequences, flat
from cvxrl.engine.world import SingleProcess, World
from cvxrl.errors import Problem, UserError
from cvxrl.objectives.statistics import action_log_probs
from cvxrl.policy.agreement import Mismatch, log_prob_tolerance, logit_size
from cvxrl.policy.rows import own_outputs
from cvxrl.recipe.mismatch import StopMismatch
from cvxrl.recipe.schema import Recipe

# Sequences of a step that are read again at other batch sizes, and those that are looked at in later steps.
_FEW, _LATER = 32, 8


class SelfCheckError(UserError):
    """Two sides that must agree do not; parameters are those before the step."""


def self_check(
    reader: Reader, recipe: Recipe, sequences: Sequences, step: int, world: World | None = None
) -> dict[str, float]:
    """Compare, before any update of the step, where the recipe says so: at step 1, then every `train.check_every`.

    The sequences of all processes are one step: the shortest and the longest of them, and the largest difference.

    Returns:
        `check/ratio_deviation`: sampler and trainer, where the policy sampled; `check/forward_deviation`: the trainer's
        log-probabilities and those of the model's own forward pass, on the shortest and the longest sequence.

    Raises:
        SelfCheckError: they differ by more than `train.ratio_tolerance`, or than rounding explains if it is not set.
    """
    every = recipe.train.check_every
    if sequences.moved:  # an earlier policy's, looked at when they were sampled
        return {}
    if step != 1 and not (every and step % every == 0):
        return {}
    world = world or SingleProcess()
    order = _by_length(world, sequences)
    ends = _those(sequences, {order[0], order[-1]})
    own, size = own_mismatch(reader, ends)
    size = max(world.gather(size))
    own, limit = _worst(world, own, tolerance(reader, size, reader.log_probs(ends)))
    found = {"check/forward_deviation": own.log_ratio}
    _require(recipe, step, own, "the trainer and the model's own forward pass give", limit)
    if sequences.sampled_logprobs is not None:
        looked_at = sequences if step == 1 else _those(sequences, set(order[-_LATER:]))
        mine = sampler_mismatch(reader, looked_at, _FEW if step == 1 else 0)
        sampler, limit = _worst(world, mine, tolerance(reader, size, looked_at.sampled_logprobs or []))
        if isinstance(recipe.rollout.mismatch, StopMismatch):
            _require(recipe, step, sampler, "the sampler and the trainer give", limit)
        found = {"check/ratio_deviation": sampler.ratio, **found}
    return found


def _by_length(world: World, sequences: Sequences) -> list[int]:
    """Positions of the step's sequences, shortest first."""
    sizes = zip(sequences.prompts, sequences.responses, sequences.positions, strict=True)
    told = world.gather([(len(prompt) + len(response), position) for prompt, response, position in sizes])
    return [position for _, position in sorted(pair for part in told for pair in part)]


def _those(sequences: Sequences, positions: set[int]) -> Sequences:
    return sequences.select([i for i, position in enumerate(sequences.positions) if position in positions])


def _worst(world: World, found: Mismatch, limit: float) -> tuple[Mismatch, float]:
    """The largest of all processes."""
    told = world.gather((found, limit))
    return reduce(Mismatch.or_worse, (mismatch for mismatch, _ in told)), max(limit for _, limit in told)


def sampler_mismatch(reader: Reader, sequences: Sequences, again: int = _FEW) -> Mismatch:
    """Of sampler and trainer: all sequences at the configured micro-batch size, the first ones also at 4 and 1.

    Args:
        reader: the trainer's side.
        sequences: sampled by the policy as it is.
        again: the step's first so many are read at the other sizes.
    """
    few = _those(sequences, set(range(again)))
    parts = [(sequences, reader.limit)]
    if len(few):
        parts += [(few, replace(reader.limit, sequences=size)) for size in (4, 1)]
    worst = Mismatch(0.0, 0.0)
    for part, limit in parts:
        assert part.sampled_logprobs is not None
        read = replace(reader, limit=limit).log_probs(part)
        worst = worst.or_worse(Mismatch.of(read, part.sampled_logprobs))
    return worst


@torch.no_grad()
def own_mismatch(reader: Reader, sequences: Sequences) -> tuple[Mismatch, float]:
    """Of the trainer and the model's own forward pass, one sequence at a time, without padding.

    Returns:
        How far they are apart, and the size of the logits (`logit_size`).
    """
    policy, own, size = reader.policy, [], 0.0
    for prompt, response in zip(sequences.prompts, sequences.responses, strict=True):
        with policy.activated(), torch.autocast(policy.device.type, dtype=torch.bfloat16, enabled=reader.bf16):
            ids = torch.tensor([[*prompt, *response[:-1]]], device=policy.device)
            logits_TV = own_outputs(policy.model, ids).logits[0, len(prompt) - 1 :]
        scaled_TV = logits_TV.float() / reader.temperature
        own.append(action_log_probs(scaled_TV, flat([response], policy.device)))
        size = max(size, logit_size(scaled_TV))
    return Mismatch.of(reader.log_probs(sequences), own), size


def tolerance(reader: Reader, size: float, logprobs: list[Tensor]) -> float:
    """Largest difference of log-probabilities that rounding explains; ``size`` is that of the logits."""
    unlikely = max((float(part.abs().max()) for part in logprobs if part.numel()), default=0.0)
    return log_prob_tolerance(reader.policy.model, unlikely, size, torch.bfloat16 if reader.bf16 else None)


def _require(recipe: Recipe, step: int, found: Mismatch, sides: str, limit: float) -> None:
    given = recipe.train.ratio_tolerance
    apart = found.ratio if given is not None else found.log_ratio
    if apart <= (given if given is not None else limit):
        return
    allowed = f"train.ratio_tolerance is {given:.1e}" if given is not None else f"rounding explains {limit:.1e} here"
    message = (
        f"step {step}: {sides} the same tokens other probabilities: log-probabilities differ by up to "
        f"{found.log_ratio:.1e}, ratios from 1 by {found.ratio:.1e}; {allowed}"
    )
    remedy = (
        f"set train.ratio_tolerance above {found.ratio:.1e} to train all the same, every ratio wrong by that; or try "
        "`rollout.engine: transformers`, `rollout.mismatch: correct`, `train.precision: fp32`, shorter responses"
    )
    raise SelfCheckError(Problem(message, "train.ratio_tolerance", remedy=remedy))
