"""Rewards that are trained on: the grader's, or made worse on purpose, to see what a method makes of that.

Apart from the graders, who also serve evaluations and know no random stream.
"""

from __future__ import annotations

from collections.abc import Sequence

from cvxrl.recipe.reward import CallableReward, FlipNoise, RewardSpec
from cvxrl.rollout.randomness import StreamKey
from cvxrl.tasks import Grade


def noisy_rewards(grades: Sequence[Grade], spec: RewardSpec, keys: Sequence[StreamKey]) -> list[float]:
    """Reward of each completion, with the noise of ``spec``.

    A reply that could not be graded counts as wrong here as well: its reward may be exchanged.

    Args:
        grades: of the completions.
        spec: the reward section of the task; without noise, the rewards are those of the grades.
        keys: for each completion the stream that its noise is drawn from.
    """
    noise = spec.noise
    if noise.kind == "none" or isinstance(spec, CallableReward):  # a function's rewards take no noise
        return [grade.reward for grade in grades]
    drawn = [float(key.uniform(1)) < noise.probability for key in keys]
    flipped = isinstance(noise, FlipNoise)
    right = [grade.correct != it if flipped else it for grade, it in zip(grades, drawn, strict=True)]
    return [spec.correct if each else spec.incorrect for each in right]
