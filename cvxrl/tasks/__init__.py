"""Tasks: prompts, how they are put to the policy, how its replies are graded. Nothing here imports torch."""

from __future__ import annotations

from cvxrl.tasks.base import Example, Task
from cvxrl.tasks.golds import check_golds, graded_examples
from cvxrl.tasks.graders import Grade, Grader, load_grader
from cvxrl.tasks.sources import load_questions, load_task

__all__ = [
    "Example",
    "Grade",
    "Grader",
    "Task",
    "check_golds",
    "graded_examples",
    "load_grader",
    "load_questions",
    "load_task",
]
