"""Tasks: prompts, how they are put to the policy, how its replies are graded. Nothing here imports torch."""

from __future__ import annotations

from cvxrl.tasks.base import Example, Task
from cvxrl.tasks.graders import Grade, Grader, load_grader
from cvxrl.tasks.sources import load_questions, load_task

__all__ = ["Example", "Grade", "Grader", "Task", "load_grader", "load_questions", "load_task"]
