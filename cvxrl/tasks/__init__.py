"""Tasks: prompts, how they are put to the policy, how its replies are graded. Nothing here imports torch."""

from __future__ import annotations

from cvxrl.recipe.task import (
    ArithmeticSource,
    CallableReward,
    CallableSource,
    DatasetSource,
    ExactReward,
    MathVerifyReward,
    ReasoningGymReward,
    ReasoningGymSource,
    TaskSpec,
)
from cvxrl.tasks import dataset, function
from cvxrl.tasks.arithmetic import ArithmeticTask
from cvxrl.tasks.base import Example, Task
from cvxrl.tasks.grade import CallableGrader, ExactGrader, Grade, Grader
from cvxrl.tasks.reasoning_gym import ReasoningGymTask
from cvxrl.tasks.sandboxed_graders import MathVerifyGrader, ReasoningGymGrader

__all__ = ["Example", "Grade", "Grader", "Task", "load_grader", "load_task"]


def load_task(spec: TaskSpec, seed: int) -> Task:
    """Make the task that the recipe describes.

    Args:
        spec: the recipe's task section.
        seed: decides the order of training examples, and nothing else: the held-out examples do not depend on
        it.

    Raises:
        UserError: the source cannot be found, read or split; every message names the recipe key.
    """
    match spec.source:
        case ArithmeticSource() as source:
            return ArithmeticTask(source, seed)
        case ReasoningGymSource() as source:
            return ReasoningGymTask(source, seed)
        case DatasetSource() as source:
            return dataset.load(source, seed)
        case CallableSource() as source:
            return function.load(source, seed)


def load_grader(spec: TaskSpec) -> Grader:
    """Make the grader that the recipe describes; close it when the run ends.

    Raises:
        UserError: a package or a function that grading needs cannot be found.
    """
    match spec.reward:
        case ExactReward() as reward:
            return ExactGrader(reward, spec.extract)
        case MathVerifyReward() as reward:
            return MathVerifyGrader(reward, spec.extract)
        case CallableReward() as reward:
            return CallableGrader(reward, spec.extract)
        case ReasoningGymReward() as reward:
            # TaskSpec lets this reward pass only together with the source that it scores.
            assert isinstance(spec.source, ReasoningGymSource)
            return ReasoningGymGrader(reward, spec.extract, spec.source)
