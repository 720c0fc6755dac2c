"""An optimizer's state of which every process holds a part: a directory of torch's distributed checkpoints.

Any number of processes reads it, each what it needs: its own parts, if its parameters are sharded, or everything.
Tensors are named `state.3.exp_avg`, by the number of the parameter among those that the optimizer steps, and
`masters.3`, by that among those that have an fp32 copy. The rest of the state is not sharded and is kept elsewhere.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from cvxrl.engine.optimizer import MASTERS, copied_parameters, stepped_parameters
from cvxrl.engine.world import is_sharded, local_part
from cvxrl.policy.sharding import of_part, part_of

_STATE = "state"


@dataclass(frozen=True)
class Owners:
    """The parameters that an optimizer's tensors belong to.

    Attributes:
        stepped: in the order in which the optimizer numbers them.
        copied: those with an fp32 copy, in the order of the copies.
    """

    stepped: Sequence[Tensor]
    copied: Sequence[Tensor]

    @classmethod
    def of(cls, modules: Sequence[nn.Module], optimizer: torch.optim.Optimizer) -> Owners:
        """Of an optimizer of `build_optimizer` over these modules."""
        stepped = [parameter for _, parameter in stepped_parameters(modules, optimizer)]
        return cls(stepped, copied_parameters(modules) if MASTERS in optimizer.state_dict() else [])

    def __getitem__(self, name: str) -> Tensor:
        """The parameter of a tensor."""
        kind, number, *_ = name.split(".")
        return (self.stepped if kind == _STATE else self.copied)[int(number)]


def take_shards(state: dict[str, Any], owners: Owners) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An optimizer's state without what is sharded, and that by name."""
    tensors = {name: tensor for name, tensor in _tensors(state) if _is_part(tensor, owners[name])}
    rest: dict[str, Any] = {
        i: {key: value for key, value in entry.items() if f"{_STATE}.{i}.{key}" not in tensors}
        for i, entry in state[_STATE].items()
    }
    kept = {key: value for key, value in state.items() if key != MASTERS or f"{MASTERS}.0" not in tensors}
    return {**kept, _STATE: rest}, {name: of_part(tensor, owners[name]) for name, tensor in tensors.items()}


def with_shards(state: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What `take_shards` took apart; ``tensors`` may be whole."""
    whole = {**state, _STATE: {i: dict(entry) for i, entry in state[_STATE].items()}}
    masters = {}
    for name, tensor in tensors.items():
        kind, number, *key = name.split(".", 2)
        if kind == _STATE:
            whole[_STATE].setdefault(int(number), {})[key[0]] = tensor
        else:
            masters[int(number)] = tensor
    return {**whole, MASTERS: [masters[i] for i in sorted(masters)]} if masters else whole


def cut(state: dict[str, Any], owners: Owners) -> dict[str, Any]:
    """State of an optimizer that steps whole parameters, for one that steps this process's parts of them."""
    whole = {
        name: tensor
        for name, tensor in _tensors(state)
        if is_sharded(owners[name]) and tensor.shape == owners[name].shape
    }
    return with_shards(state, {name: part_of(tensor, owners[name]) for name, tensor in whole.items()})


def write_shards(folder: Path, shards: dict[str, Tensor]) -> None:
    """Write sharded tensors; called by all processes, each of which sees ``folder``.

    Raises:
        OSError: what failed in any of them.
    """
    try:
        save(shards, storage_writer=FileSystemWriter(folder))
    except CheckpointException as error:
        raise _first(error) from error


def read_shards(folder: Path, owners: Owners | None = None) -> dict[str, Tensor]:
    """Read what `write_shards` wrote: whole, or of parameters that are sharded, this process's part.

    Every process reads for itself.
    """
    reader = FileSystemReader(folder)
    found: dict[str, Tensor] = {}
    for name, stored in reader.read_metadata().state_dict_metadata.items():
        assert isinstance(stored, TensorStorageMetadata)
        dtype = stored.properties.dtype
        owner = None if owners is None else owners[name]
        if owner is not None and is_sharded(owner):
            found[name] = of_part(torch.empty_like(local_part(owner), dtype=dtype), owner)
        else:
            found[name] = torch.empty(stored.size, dtype=dtype)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that this process reads alone, which is meant
            load(found, storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        raise _first(error) from error
    return {name: local_part(tensor) for name, tensor in found.items()}


def _tensors(state: dict[str, Any]) -> list[tuple[str, Tensor]]:
    of_steps = [(f"{_STATE}.{i}.{key}", value) for i, entry in state[_STATE].items() for key, value in entry.items()]
    copies = [(f"{MASTERS}.{i}", copy) for i, copy in enumerate(state.get(MASTERS, []))]
    return [(name, value) for name, value in [*of_steps, *copies] if isinstance(value, Tensor)]


def _is_part(tensor: Tensor, owner: Tensor) -> bool:
    """Whether a tensor has an entry for every entry of this process's part of a sharded parameter."""
    return is_sharded(owner) and tensor.shape == local_part(owner).shape


def _first(error: CheckpointException) -> BaseException:
    """The error of the first process that has one, which torch wraps into one of its own."""
    found: BaseException = next(iter(error.failures.values()))[0]
    return found
