"""A policy's weights as a server wants them: one tensor after another, by the names of its files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cvxrl.policy.adapter import has_adapter, merged_weights
from cvxrl.policy.model import Policy

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def stored_weights(policy: Policy, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Tensors by their names in a saved policy; an adapter is added to them, tied ones come once.

    Args:
        policy: whole.
        dtype: of the result's floating-point tensors; None leaves them as they are.
    """
    from transformers.core_model_loading import revert_weight_conversion

    model = policy.model
    state = merged_weights(model) if has_adapter(model) else model.state_dict()
    tied = {name for name, source in getattr(model, "all_tied_weights_keys", {}).items() if source in state}
    once = {name: t.detach() for name, t in state.items() if name not in tied or not _same(t, name, model, state)}
    saved: dict[str, Tensor] = revert_weight_conversion(model, once)
    if dtype is None:
        return saved
    return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in saved.items()}


def _same(tensor: Tensor, name: str, model: object, state: dict[str, Tensor]) -> bool:
    """Whether a tensor that the family ties still is the other's: an adapter unties what it adds to."""
    source = state[model.all_tied_weights_keys[name]]  # type: ignore[attr-defined]
    return tensor.data_ptr() == source.data_ptr() or bool((tensor == source).all())
