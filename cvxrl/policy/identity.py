"""Which policy it is: digests of weights and tokenizer, equal wherever and by whichever command they are taken."""

from __future__ import annotations

import ctypes
import hashlib
from operator import itemgetter
from typing import TYPE_CHECKING

from torch import Tensor

from cvxrl.policy.adapter import has_adapter, merged_weights, name_without_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def hash_weights(model: PreTrainedModel) -> str:
    """SHA-256 over name, type, shape and bytes of every parameter and buffer; matrices that are tied count once.

    A model with an adapter has the digest of the model that the two amount to, as `Policy.save` writes it.
    """
    if not has_adapter(model):
        return hash_as_held(model)
    merged = merged_weights(model)
    held = {name_without_adapter(name): tensor for name, tensor in _tensors(model)}
    return _hash({name: merged.get(name, tensor) for name, tensor in held.items() if name is not None})


def hash_as_held(model: PreTrainedModel) -> str:
    """The same with an adapter's matrices beside those they are added to, as version 0.1 took it."""
    return _hash(dict(_tensors(model)))


def count_parameters(model: PreTrainedModel) -> int:
    """Number of parameters of the model, an adapter not counted."""
    return sum(p.numel() for name, p in model.named_parameters() if name_without_adapter(name) is not None)


def _tensors(model: PreTrainedModel) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _hash(tensors: dict[str, Tensor]) -> str:
    """Bytes are read where they are: memory that numpy has seen could not be freed by what shards a policy."""
    total = hashlib.sha256()
    for name, tensor in sorted(tensors.items(), key=itemgetter(0)):
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        held = tensor.detach().cpu().contiguous()
        total.update((ctypes.c_char * (held.numel() * held.element_size())).from_address(held.data_ptr()))
    return total.hexdigest()


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over vocabulary, rules, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    special = sorted((name, str(value)) for name, value in tokenizer.special_tokens_map.items())
    text = f"{rules}\n{special}\n{tokenizer.chat_template}"
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
