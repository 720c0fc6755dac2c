"""An optimizer step that is tried before it is kept: the loss or the KL along it, and the share that is accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cvxrl.engine.displacement import Displacement
from cvxrl.engine.loss import Loss, with_old_logits
from cvxrl.engine.optimizer import stepped_parameters
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.step_control import Accepted, confine, search
from cvxrl.engine.world import World, is_sharded, local_part
from cvxrl.objectives.linear import LinearHead, linear_statistics
from cvxrl.policy.agreement import rounding
from cvxrl.recipe.advantage import GroupAdvantage
from cvxrl.recipe.lco import LcoKldSpec
from cvxrl.recipe.objective import RegularizerSpec
from cvxrl.recipe.step import LineSearchStep, SearchedStep, TrustRegionStep
from cvxrl.rollout.randomness import generator_for

# Where the optimizer keeps the share that the next search starts from, and the steps since it was accepted: beside its
# learning rate, so that they are saved, restored and, by `train.reset_optimizer`, kept with it.
_LAST, _SINCE = "last_share", "steps_since_search"


class Trial:
    """One optimizer step under a line search or a trust region.

    The passes of the backward pass are made again at each share, with the same dropout: `hear` keeps their sequences,
    and with them what the policy said before the step, which costs no pass.
    """

    def __init__(
        self, loss: Loss, spec: LineSearchStep | TrustRegionStep, step: Sequences, seed: int, index: int
    ) -> None:
        """Get ready to hear the backward pass.

        Args:
            loss: of the optimizer step.
            spec: the recipe's step control.
            step: all sequences of this process, weighed.
            seed: of the dropout of that pass.
            index: number of the optimizer step in the run.
        """
        self._loss, self._spec, self._seed = loss, spec, seed
        self._kl: Loss | None = None
        weighed = step
        if isinstance(spec, TrustRegionStep):
            self._kl = divergence_from_before(loss)
            generator = generator_for(loss.recipe.seed, "trust region", index)
            weighed = self._kl.weigh(drawn(step, spec.sequences, loss.world, generator))
        assert weighed.weights is not None
        self._weights = dict(zip(weighed.positions, weighed.weights, strict=True))
        self._passes: list[Sequences] = []
        head = loss.reader.head
        with loss.policy.whole():
            self._head = None if head is None else head.frozen()

    def hear(self, micro: Sequences, said: Tensor) -> None:
        """Keep a pass of the backward pass, see `Loss.backward`."""
        parts = list(torch.split(said, micro.lengths))
        kept = [i for i, position in enumerate(micro.positions) if position in self._weights]
        if len(kept) < len(micro):
            if not kept:
                return
            # Copies, since a part would keep all that was said.
            micro, parts = micro.select(kept), [parts[i].clone() for i in kept]
        weighed = replace(micro, weights=[self._weights[position] for position in micro.positions])
        if self._kl is not None:
            self._passes.append(as_before(_without_advantages(weighed), parts, self._head, self._kl))
        elif micro.advantages is not None and not micro.moved:
            self._passes.append(as_before(weighed, parts, self._head, self._loss))
        else:
            self._passes.append(weighed)

    def take(self, optimizer: torch.optim.Optimizer, loss_before: float, clipped: float) -> dict[str, float]:
        """Take the optimizer's step, then the share of it that the search accepts.

        Args:
            optimizer: the parameters' gradients are those of the heard pass, clipped.
            loss_before: the loss of that pass.
            clipped: what its gradient was multiplied with.

        Returns:
            What is logged of it.
        """
        loss = self._loss
        pairs = stepped_parameters(loss.trained, optimizer)
        gradients = [parameter.grad for _, parameter in pairs]
        displacement = Displacement(pairs)
        optimizer.step()
        slope = self._slope(displacement, gradients) / clipped
        gradients.clear()
        for _, parameter in pairs:
            parameter.grad = None  # makes room for the copy of where the step ended

        def at(share: float) -> float:
            displacement.move(share)
            torch.manual_seed(self._seed)
            return (self._kl or loss).value(self._passes)

        accepted = self._search(at, loss_before, slope, optimizer.param_groups[0].get(_LAST))
        displacement.move(accepted.share)
        # A refused step leaves no share that was seen to be good: the next one is searched.
        optimizer.param_groups[0] |= {_LAST: accepted.last, _SINCE: self._spec.every if accepted.refused else 0}
        return self._metrics(accepted, loss_before)

    def _search(self, at: Callable[[float], float], before: float, slope: float, last: float | None) -> Accepted:
        if isinstance(self._spec, TrustRegionStep):
            return confine(at, self._spec, last)
        given = self._spec.tolerance
        tolerance = loss_rounding(self._loss, before) if given is None else given
        return search(at, before, slope, self._spec, last, tolerance)

    def _metrics(self, accepted: Accepted, before: float) -> dict[str, float]:
        found = {
            "step/share": accepted.share,
            "step/evaluations": float(accepted.evaluations),
            "step/refused": float(accepted.refused),
        }
        if self._kl is not None:
            return {**found, "step/kl": accepted.value or 0.0}
        after = before if accepted.value is None else accepted.value
        return {**found, "step/loss_before": before, "step/loss_after": after}

    def _slope(self, displacement: Displacement, gradients: Sequence[Tensor | None]) -> float:
        """<g, d> over all parameters and processes: the same number in each of these, which then decide alike."""
        world = self._loss.world
        common = displacement.slope([None if g is None or is_sharded(g) else g for g in gradients])
        own = displacement.slope([None if g is None or not is_sharded(g) else local_part(g) for g in gradients])
        return float(world.sum(torch.tensor(own + common / world.size, dtype=torch.float64)))


def last_share(optimizer: torch.optim.Optimizer) -> float | None:
    """The share that the next search of an optimizer starts from, before growth; None if it has searched nothing."""
    found: float | None = optimizer.param_groups[0].get(_LAST)
    return found


def between_searches(optimizer: torch.optim.Optimizer, spec: SearchedStep) -> bool:
    """Whether the next optimizer step takes the last accepted share untried (`step.every`)."""
    since: int = optimizer.param_groups[0].get(_SINCE, spec.every)
    return since + 1 < spec.every


def take_untried(loss: Loss, optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Take the optimizer's step, then the share of it that the last search accepted: no pass is made.

    Args:
        loss: of the optimizer step.
        optimizer: the parameters' gradients are clipped.

    Returns:
        What is logged of it.
    """
    group = optimizer.param_groups[0]
    displacement = Displacement(stepped_parameters(loss.trained, optimizer))
    optimizer.step()
    displacement.move(group[_LAST])
    group[_SINCE] += 1
    return {"step/share": group[_LAST], "step/evaluations": 0.0, "step/refused": 0.0}


def drawn(step: Sequences, count: int | None, world: World, generator: torch.Generator) -> Sequences:
    """Those of ``count`` sequences, drawn from all processes' together, that are this process's, in their order.

    All where that is None or not fewer. Sequences without a response token are not drawn: they measure nothing.

    Args:
        step: this process's sequences of an optimizer step.
        count: how many to draw.
        world: the processes that share the step.
        generator: the same in each of them.
    """
    if count is None:
        return step
    filled = [i for i, length in enumerate(step.lengths) if length]
    sizes = world.gather(len(filled))
    first, total = sum(sizes[: world.rank]), sum(sizes)
    if count >= total:
        return step
    chosen = sorted(torch.randperm(total, generator=generator)[:count].tolist())
    return step.select([filled[k - first] for k in chosen if first <= k < first + len(filled)])


def divergence_from_before(loss: Loss) -> Loss:
    """KL(before || now), mean over an optimizer step's tokens: LCO-KLD's loss, whose target is the policy before."""
    recipe = loss.recipe
    sections: dict[str, Any] = {
        "objective": LcoKldSpec(),
        "advantage": GroupAdvantage(),
        "regularizer": RegularizerSpec(),
        "reduction": "token-mean",
        "rollout": recipe.rollout.model_copy(update={"temperature": loss.reader.temperature}),
    }
    return Loss(recipe.model_copy(update=sections), loss.policy, world=loss.world)


def _without_advantages(sequences: Sequences) -> Sequences:
    """Without advantages a target is the policy that it is built on."""
    zeros = [torch.zeros(length) for length in sequences.lengths]
    credit = dict.fromkeys(["group_advantages", "dense", "values", "returns", "corrections"])
    old = dict.fromkeys(["old_logits", "old_logprobs", "old_hidden", "old_head"])
    nothing: dict[str, Any] = {**credit, **old}
    return replace(sequences, advantages=zeros, **nothing)


@torch.no_grad()
def as_before(sequences: Sequences, said: list[Tensor], head: LinearHead | None, loss: Loss) -> Sequences:
    """The same with what the policy says now as that of the policy before, as far as the objective needs it.

    Args:
        sequences: of one pass.
        said: logits [T, V] of each, or hidden states [T, H] where losses are chunked.
        head: the output layer as it is now, frozen, in that case.
        loss: whose objective it is.
    """
    whole = "old_logits" in loss.recipe.objective.needs
    if head is None:
        kept = with_old_logits(sequences, said)
        return kept if whole else replace(kept, old_logits=None)
    if whole:
        return replace(sequences, old_hidden=said, old_head=head)
    actions_N = torch.tensor([token for response in sequences.responses for token in response], device=said[0].device)
    found = linear_statistics(torch.cat(said), head, actions_N, chunk_tokens=loss.reader.chunk_tokens)
    return replace(sequences, old_logprobs=list(torch.split(found.logprobs_N, sequences.lengths)))


def loss_rounding(loss: Loss, value: float) -> float:
    """What rounding can do to a difference of two losses: half the square of what it does to a logit, and a sum's own.

    Rounded weights and activations shake the logits of every token; a KL sees the square of that.
    """
    model = loss.policy.model
    logits = rounding(model, torch.bfloat16 if loss.reader.bf16 else None)
    return 0.5 * logits**2 + 4.0 * torch.finfo(torch.float32).eps * (1.0 + abs(value))
