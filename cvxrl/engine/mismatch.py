"""How far sampler and trainer are apart on a rollout, measured, and the weights that correct for it."""

from __future__ import annotations

from dataclasses import replace

import torch

from cvxrl.engine.loss import Loss
from cvxrl.engine.self_check import SelfCheckError
from cvxrl.engine.sequences import Sequences
from cvxrl.errors import Problem
from cvxrl.objectives.correction import importance_weights
from cvxrl.objectives.statistics import k3
from cvxrl.recipe.mismatch import CorrectMismatch, StopMismatch


@torch.no_grad()
def against_sampler(loss: Loss, sequences: Sequences) -> tuple[Sequences, dict[str, float]]:
    """Compare with what the sampler said, as `rollout.mismatch` asks.

    Args:
        loss: of the policy that sampled, by the weights it had; one forward pass where its log-probabilities have not
            been remembered.
        sequences: this process's.

    Returns:
        The sequences, with `corrections` where they are asked for; and over all processes the mean and largest ratio of
        trainer to sampler, the share outside of the bounds, and KL(sampler || trainer) per token.

    Raises:
        SelfCheckError: a log-probability is not a number, which nothing corrects.
    """
    spec, said = loss.recipe.rollout.mismatch, sequences.sampled_logprobs
    if isinstance(spec, StopMismatch) or said is None:
        return sequences, {}
    own = sequences.old_logprobs or loss.reader.log_probs(sequences)
    nothing = torch.zeros(0, dtype=torch.float64)  # a process may have no sequence
    log_ratio_N = torch.cat([nothing, *(a.cpu().double() - b.double() for a, b in zip(own, said, strict=True))])
    if any(loss.world.gather(bool(log_ratio_N.isnan().any()))):
        remedy = "look at what the sampler returns; rollout.engine: auto samples in the trainer's own process"
        raise SelfCheckError(Problem("the sampler gave a token no probability", "rollout.engine", remedy=remedy))
    correct = isinstance(spec, CorrectMismatch)
    rule = spec if isinstance(spec, CorrectMismatch) else CorrectMismatch(cap=None)
    sequence_N = torch.arange(len(sequences)).repeat_interleave(torch.tensor(sequences.lengths, dtype=torch.long))
    ratio_N, weight_N = importance_weights(log_ratio_N, sequence_N, rule) if len(sequences) else (nothing, nothing)
    told = {"ratio": ratio_N, "outside": (weight_N != ratio_N).double(), "kl": k3(log_ratio_N)}
    sums = torch.stack([torch.tensor(float(len(ratio_N))).double(), *(value_N.sum() for value_N in told.values())])
    count, ratio, outside, kl = loss.world.sum(sums).tolist()
    metrics = {
        "mismatch/ratio_mean": ratio / count,
        "mismatch/ratio_max": max(loss.world.gather(float(ratio_N.max()) if len(ratio_N) else 0.0)),
        **({"mismatch/outside": outside / count} if correct else {}),
        "mismatch/kl": kl / count,
    }
    if not correct:
        return sequences, metrics
    return replace(sequences, corrections=list(torch.split(weight_N.float(), sequences.lengths))), metrics
