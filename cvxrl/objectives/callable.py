"""An objective that is a function of the user's, named in the recipe as `module:function`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cvxrl.errors import Problem, UserError
from cvxrl.imports import import_function
from cvxrl.objectives.batch import ObjectiveOutput, TokenBatch
from cvxrl.recipe.objective import CallableObjective

_KEY = "objective.function"


def find_objective(spec: CallableObjective) -> Callable[..., Any]:
    """The function that ``spec`` names.

    Raises:
        UserError: it cannot be imported or called.
    """
    return import_function(spec.function, _KEY)


def call_objective(batch: TokenBatch, spec: CallableObjective) -> ObjectiveOutput:
    """Per-token losses by the user's function, in this process; what it raises keeps its traceback.

    Raises:
        UserError: it returned something other than an `ObjectiveOutput` or a loss per token with a gradient.
    """
    returned = find_objective(spec)(batch, **spec.options)
    output = returned if isinstance(returned, ObjectiveOutput) else ObjectiveOutput(returned)
    shape = tuple(batch.actions_N.shape)
    _expect(spec, "loss", output.loss_N, shape)
    for name, value_N in output.metrics.items():
        _expect(spec, f"metric `{name}`", value_N, shape)
    if torch.is_grad_enabled() and batch.logits_NV.requires_grad and not output.loss_N.requires_grad:
        message = f"the loss of `{spec.function}` does not depend on batch.logits_NV"
        raise UserError(Problem(message, _KEY, remedy="compute it from batch.logits_NV, without detach() or .item()"))
    return output


def _expect(spec: CallableObjective, what: str, value: object, shape: tuple[int, ...]) -> None:
    if not isinstance(value, Tensor):
        message = f"the {what} of `{spec.function}` is {type(value).__name__}"
    elif tuple(value.shape) != shape:
        message = f"the {what} of `{spec.function}` has shape {tuple(value.shape)}"
    else:
        return
    remedy = f"return one number per response token: a tensor of shape {shape} here, or an ObjectiveOutput of such"
    raise UserError(Problem(message, _KEY, remedy=remedy))
