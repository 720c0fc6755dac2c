"""The value head: what reward the critic expects from each position on."""

from __future__ import annotations

from torch import Tensor, nn

from cvxrl.engine.micro_batches import Rows
from cvxrl.engine.readers import Reader


class Critic(nn.Module):
    """A linear map from the policy's last hidden states to a value; its loss reaches the policy's trunk too.

    At its start, zero, every token's advantage is what Monte Carlo gives without a baseline.
    """

    def __init__(self, hidden_size: int) -> None:
        """Start at zero."""
        super().__init__()
        self.value = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, hidden_NH: Tensor) -> Tensor:
        """Values in fp32, [N]."""
        values: Tensor = self.value(hidden_NH.float()).squeeze(-1)
        return values

    def read(self, reader: Reader, prompts: Rows, responses: Rows) -> list[Tensor]:
        """Value before each response token, [T] per sequence."""
        return reader.each(prompts, responses, lambda p, r: self(reader.hidden(p, r)))
