"""The critic's loss."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(values_N: Tensor, old_values_N: Tensor, returns_N: Tensor, clip: float | None) -> Tensor:
    """Half the squared error to the returns, [N]; with ``clip`` the larger one of it and that of the clipped value.

    The clipped value stays within ``clip`` of what the critic said at rollout time, as in PPO's reference code.
    """
    loss_N = (values_N - returns_N).square()
    if clip is not None:
        clipped_N = old_values_N + (values_N - old_values_N).clamp(-clip, clip)
        loss_N = torch.maximum(loss_N, (clipped_N - returns_N).square())
    return 0.5 * loss_N
