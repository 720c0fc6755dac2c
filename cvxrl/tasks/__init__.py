"""Tasks: prompts, how they are put to the policy, how its replies are graded. Nothing here imports torch.

Its names are loaded when they are asked for: the process that grades imports a module of this room and none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
_MODULES = {
    "base": ("Example", "Task"),
    "golds": ("check_golds", "graded_examples"),
    "graders": ("Grade", "Grader", "load_grader"),
    "sources": ("load_questions", "load_task"),
}


def __getattr__(name: str) -> Any:
    """Load the module that a name is from."""
    import importlib

    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"cvxrl.tasks.{module}"), name)
    raise AttributeError(f"module `cvxrl.tasks` has no attribute `{name}`")
