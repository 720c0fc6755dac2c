"""How a reply is graded, and what is trained on of the grade, as recipe sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from cvxrl.recipe.base import ADDED, FunctionName, Section


class NoNoise(Section):
    """What the grader says is trained on."""

    kind: Literal["none"] = Field("none", description="Training rewards are what the grader says.")


class FlipNoise(Section):
    """Some training rewards say the opposite of the grade."""

    kind: Literal["flip"] = Field(
        "flip", description="A training reward is exchanged, `correct` for `incorrect` and the other way round."
    )
    probability: float = Field(0.2, ge=0, le=1, description="Chance of that, for each completion by itself.")


class CoinNoise(Section):
    """Training rewards that know nothing of the reply: whatever is learned from them is the method's own drift."""

    kind: Literal["coin"] = Field("coin", description="A training reward is a coin's, whatever the reply.")
    probability: float = Field(0.5, ge=0, le=1, description="Chance of the reward `correct`.")


NoiseSpec = Annotated[NoNoise | FlipNoise | CoinNoise, Field(discriminator="kind")]

_NOISE = (
    "What training rewards are made worse by, drawn from a stream of the completion's own. Evaluations, "
    "`reward/correct` and what `compare` reads keep the grade."
)


class ExactReward(Section):
    """String equality with the answer."""

    kind: Literal["exact"] = Field("exact", description="The extracted text equals the answer.")
    correct: float = Field(1.0, description="Reward of a right reply.")
    incorrect: float = Field(0.0, description="Reward of a wrong reply.")
    noise: Annotated[NoiseSpec, ADDED] = Field(NoNoise(), description=_NOISE)


class WorkerReward(Section):
    """What rewards share whose grader runs in a process of its own, under limits."""

    correct: float = Field(1.0, description="Reward of a right reply.")
    incorrect: float = Field(0.0, description="Reward of a wrong reply, and of one that could not be graded.")
    noise: Annotated[NoiseSpec, ADDED] = Field(NoNoise(), description=_NOISE)
    timeout_s: PositiveFloat = Field(5.0, description="Seconds that grading one reply may take; then it is an error.")
    memory_mb: PositiveInt = Field(
        1024, description="Memory that grading may take (Linux), in MiB; then it is an error."
    )


class MathVerifyReward(WorkerReward):
    """Mathematical equality with the answer, by the package math-verify."""

    kind: Literal["math-verify"] = Field(
        "math-verify", description="The extracted text equals the answer as mathematics."
    )


class ReasoningGymReward(WorkerReward):
    """The score that reasoning-gym itself gives, for problems with more than one right answer."""

    kind: Literal["reasoning-gym"] = Field(
        "reasoning-gym",
        description="The data set's own score; `correct` if at least `threshold`, else `incorrect`.",
    )
    threshold: float = Field(1.0, gt=0, le=1, description="Lowest score that counts as right.")


class CallableReward(Section):
    """A function of yours."""

    kind: Literal["callable"] = Field("callable", description="The number that a python function returns.")
    function: FunctionName = Field(
        description="`module:function`; called with `completion`, `answer`, `prompt`, `info`, `extracted` "
        "and `kwargs`, returns a number or a boolean. The working directory is searched too."
    )
    kwargs: dict[str, Any] = Field({}, description="More keyword arguments of the function.")
    threshold: float = Field(1.0, description="Lowest reward that counts as right in the accuracy.")
    isolated: bool = Field(
        True,
        description="Call it in a process of its own, under the two limits below. `false` calls it in the run's own "
        "process without limits, for a function that needs what the run holds: in the thread that imported it, in turn "
        "with sampling, and not with `rollout.ahead`.",
    )
    timeout_s: PositiveFloat = Field(10.0, description="Seconds that one reply may take; a late one is an error.")
    memory_mb: PositiveInt = Field(4096, description="MiB that the process may take beyond what importing took.")
    ungraded: float = Field(0.0, description="Reward of a reply that broke a limit; it counts as a grader error.")
    noise: Annotated[NoiseSpec, ADDED] = Field(
        NoNoise(),
        description="None: there is no right and no wrong reward to exchange, so the function itself adds it.",
    )


RewardSpec = Annotated[
    ExactReward | MathVerifyReward | ReasoningGymReward | CallableReward, Field(discriminator="kind")
]
