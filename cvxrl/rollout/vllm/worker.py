"""The receiving end of the weight transfer `cvxrl`; runs in vLLM's workers and in no other process.

vLLM brings transports between GPUs, and none for a CPU. This one takes weights over gloo, from files, or from this
process, in the names and shapes of a Hugging Face checkpoint; vLLM's own layerwise reloading does the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.platforms import current_platform

from cvxrl.rollout.vllm.gloo import address_towards, join, visit


@dataclass
class InitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Where the trainer waits for the workers; nowhere if weights come from files or from this process.

    `shape` is that of the trainer's model, as in `cvxrl.rollout.vllm.facts.shape_of`.
    """

    shape: dict[str, int] = field(default_factory=dict)
    address: str | None = None
    port: int = 0
    size: int = 0
    timeout: float = 600.0


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """What is coming: names, data types and shapes over gloo, else a folder, else the tensors themselves."""

    names: list[str] = field(default_factory=list)
    dtypes: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    directory: str | None = None
    tensors: Any = None


class WeightReceiver(WeightTransferEngine[InitInfo, UpdateInfo]):  # type: ignore[misc]
    """One worker's end."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    group: Any = None

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Join the trainer's group; a former trainer's is left.

        Raises:
            ValueError: the model is another one; the text reaches the trainer.
        """
        self.shutdown()
        own = self.model_config.hf_text_config
        found = {name: int(getattr(own, name, expected)) for name, expected in init_info.shape.items()}
        if found != init_info.shape:
            theirs = init_info.shape
            other = [f"{name} {n} instead of {theirs[name]}" for name, n in found.items() if n != theirs[name]]
            raise ValueError(f"another model than the policy, {', '.join(other)}")
        if init_info.address is None:
            return
        parallel = self.parallel_config
        rank = 1 + parallel.data_parallel_index * parallel.world_size + parallel.rank
        here = address_towards(init_info.address, init_info.port)
        store = visit(init_info.address, init_info.port, init_info.timeout)
        self.group = join(store, here, rank, init_info.size, init_info.timeout)

    def start_weight_update(self) -> None:
        """Layers are ready to be loaded anew, also those of an update that broke off."""
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load what comes."""
        self.model.load_weights(self._weights(update_info))

    def finish_weight_update(self) -> None:
        """All layers compute with what was loaded.

        vLLM packs the output layer's matrix for the CPU's products when it is loaded. One that is tied to the
        embeddings is loaded with them and was left packed as it was: its logits would be those of the old weights.
        """
        finalize_layerwise_reload(self.model, self.model_config)
        if current_platform.is_cpu():
            for layer in self.model.modules():
                if isinstance(layer, ParallelLMHead) and isinstance(layer.quant_method, UnquantizedEmbeddingMethod):
                    layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        """Leave the trainer."""
        self.group = None

    def _weights(self, info: UpdateInfo) -> Iterator[tuple[str, Tensor]]:
        if info.tensors is not None:
            yield from info.tensors
        elif info.directory is not None:
            for file in sorted(Path(info.directory).glob("*.safetensors")):
                yield from load_file(file).items()
        else:
            if self.group is None:
                raise RuntimeError("no trainer has been joined")
            for name, dtype, shape in zip(info.names, info.dtypes, info.shapes, strict=True):
                tensor = torch.empty(shape, dtype=getattr(torch, dtype))
                self.group.broadcast(tensor, 0).wait()
                yield name, tensor.to(self.device)
