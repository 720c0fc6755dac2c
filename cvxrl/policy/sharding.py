"""A policy whose parameters are split over processes by torch's FSDP2, decoder layer by decoder layer.

Each process holds 1/N of every parameter, of its gradient and of the optimizer's state. There are two ways to compute
with such a policy. A *pass* (`Sharding.run`), with gradient, gathers a layer's parameters for as long as they are
needed and scatters the sum of all processes' gradients: every process makes as many. While the weights are *whole*
(`Sharding.whole`) the model is what it was before it was sharded, class, parameters and all, so that whatever runs
without gradient needs no other process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from cvxrl.policy.forward import packed_layer
from cvxrl.policy.layers import decoder_layers
from cvxrl.policy.model import Policy
from cvxrl.policy.plain import PACKED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


class _Root(nn.Module):
    """Around the model: whatever is computed in it is one forward pass, with all but the layers' parameters whole."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns."""
        return compute()


@dataclass
class _Disguise:
    """What FSDP2 makes of a module: another class, two hooks, and a packed pass that runs them."""

    module: Any
    plain: type
    sharded: type
    hooks: dict[str, dict[int, Any]]
    packed: Any = None

    @classmethod
    def put_on(cls, module: nn.Module, **options: Any) -> _Disguise:
        """Shard a module."""
        plain, before = type(module), {name: set(getattr(module, name)) for name in _HOOKS}
        fully_shard(module, **options)
        hooks = {
            name: {key: hook for key, hook in getattr(module, name).items() if key not in before[name]}
            for name in _HOOKS
        }
        disguise = cls(module, plain, type(module), hooks)
        if not isinstance(module, _Root):
            setattr(module, PACKED, MethodType(packed_layer, module))
            register_fsdp_forward_method(module, PACKED)
            disguise.packed = getattr(module, PACKED)
        return disguise

    def gather(self) -> None:
        """Make the module what it was, with all of its parameters."""
        self.module.unshard()
        for name, hooks in self.hooks.items():
            for key in hooks:
                getattr(self.module, name).pop(key)
        vars(self.module).pop(PACKED, None)
        self.module.__class__ = self.plain

    def release(self) -> None:
        """Undo `gather`; what was written into the gathered parameters is lost."""
        self.module.__class__ = self.sharded
        if self.packed is not None:
            setattr(self.module, PACKED, self.packed)
        for name, hooks in self.hooks.items():
            getattr(self.module, name).update(hooks)
        self.module.reshard()


@dataclass
class Sharding:
    """How a model is sharded, and which of its two states it is in.

    Attributes:
        model: the policy's.
        mesh: the processes.
        parts: its layers, and last the root.
        by_layer: whether there is more than the root.
    """

    model: PreTrainedModel
    mesh: DeviceMesh
    parts: list[_Disguise]
    by_layer: bool = True
    _whole: int = field(default=0, init=False)
    _running: bool = field(default=False, init=False)

    @classmethod
    def of(cls, model: PreTrainedModel, *, by_layer: bool = True) -> Sharding:
        """Shard a loaded model in place over all processes of the default group, each of which has the same weights.

        Args:
            model: on this process's device.
            by_layer: whether a pass runs every layer once; otherwise all parameters are gathered together.
        """
        device = next(model.parameters()).device
        mesh = DeviceMesh(device.type, list(range(torch.distributed.get_world_size())))
        # Sums of half-precision gradients over processes are formed in fp32 and rounded once.
        options = {
            "mesh": mesh,
            "reshard_after_forward": True,  # the root too, or a pass without backward would leave it gathered, and old
            "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False),
        }
        known = [set(hooks) for hooks in _state_hooks(model)]
        root = _Root(model)
        parts = [_Disguise.put_on(layer, **options) for layer in (decoder_layers(model) if by_layer else [])]
        parts.append(_Disguise.put_on(root, **options))
        for part in parts:
            _sum_gradients(part.module)
        sharding = cls(model, mesh, parts, len(parts) > 1)
        with sharding.whole():
            pass  # FSDP2 settles where shards are kept, and adds hooks, when they are first gathered
        for hooks, keys in zip(_state_hooks(model), known, strict=True):
            for key in hooks.keys() - keys:
                del hooks[key]  # of states that are read or loaded: would shard what is whole for that very purpose
        return sharding

    @property
    def is_whole(self) -> bool:
        """Whether this is inside `whole`."""
        return self._whole > 0

    def run(self, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns, as one pass with gradient: tensors, through which its backward pass begins.

        Inside `whole`, or inside of another pass, it is computed as it is.
        """
        if self._whole or self._running:
            return compute()
        if not torch.is_grad_enabled():
            with self.whole():
                return compute()
        self._running = True
        try:
            return self.parts[-1].module(compute)
        finally:
            self._running = False

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, every process holds all parameters as they are now, and none waits for another.

        Entered and left by all processes; may be nested.
        """
        assert not self._running, "a pass with gradient is under way"
        if not self._whole:
            for part in self.parts:
                part.gather()
        self._whole += 1
        try:
            yield
        finally:
            self._whole -= 1
            if not self._whole:
                for part in self.parts:
                    part.release()

    @contextmanager
    def rewritten(self) -> Iterator[None]:
        """As `whole`, and what is written into the parameters inside stays."""
        assert not self._whole, "what is whole already is a copy"
        shards = dict(self.model.named_parameters())
        with self.whole():
            yield
            for name, parameter in self.model.named_parameters():
                shards[name].detach().to_local().copy_(part_of(parameter, shards[name]))


def _state_hooks(model: nn.Module) -> list[dict[int, Any]]:
    names = ("_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
    return [getattr(module, name) for module in model.modules() for name in names]


def shard(policy: Policy) -> Policy:
    """A policy with its model sharded in place; all processes have loaded the same.

    Args:
        policy: frozen, if it is to be.
    """
    checked, ways = policy.checked, policy.ways
    by_layer = ways.packed or ways.padded
    sharding = Sharding.of(policy.model, by_layer=by_layer)
    # Prompts that run once are passes of their own, more or fewer of them in one process than in another.
    checked.ways = replace(ways, shared=ways.shared and not sharding.by_layer)
    placed = replace(policy, sharding=sharding)
    vars(placed)["checked"] = checked
    return placed


def _sum_gradients(module: FSDPModule) -> None:
    """The loss is normalised over all processes already: gradients are summed, also those that one has no part in."""
    module.set_gradient_divide_factor(1.0)
    module.set_force_sum_reduction_for_comms(True)
    module.set_reduce_scatter_unused_params(True, recurse=False)


def part_of(tensor: Tensor, like: Any) -> Tensor:
    """This process's part, in memory of its own, of a tensor that it has the whole of, sharded as ``like`` is."""
    sharded = distribute_tensor(tensor.detach(), like.device_mesh, like.placements, src_data_rank=None)
    return sharded.to_local().clone()


def of_part(part: Tensor, like: Any) -> DTensor:
    """The sharded tensor of which ``part`` is this process's, sharded as ``like`` is."""
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
