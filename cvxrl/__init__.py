"""Logits-convex policy optimization of language models: train, evaluate, compare, inspect.

For notebooks: ``cvxrl.train("math_grpo", {"train.steps": 20})`` and the like (docs/notebook.md). Importing the package
loads none of the libraries that these need.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvxrl.api import TrainedRun, compare, evaluate, inspect, load_recipe, train
    from cvxrl.errors import UserError

__version__ = "0.2.0"
__all__ = ["TrainedRun", "UserError", "__version__", "compare", "evaluate", "inspect", "load_recipe", "train"]


def __getattr__(name: str) -> Any:
    """Load the notebook's functions when the first of them is asked for."""
    if name not in __all__:
        raise AttributeError(f"module `cvxrl` has no attribute `{name}`")
    import importlib

    return getattr(importlib.import_module("cvxrl.errors" if name == "UserError" else "cvxrl.api"), name)


def __dir__() -> list[str]:
    return __all__
