"""Which policy it is: digests of weights and tokenizer, equal wherever and by whichever command they are taken."""

from __future__ import annotations

import hashlib
from operator import itemgetter

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cvxrl.policy.adapter import has_adapter, merged_weights, name_without_adapter


def hash_weights(model: PreTrainedModel) -> str:
    """SHA-256 over name, type, shape and bytes of every parameter and buffer; matrices that are tied count once.

    A model with an adapter has the digest of the model that the two amount to, as `Policy.save` writes it.
    """
    merged = merged_weights(model) if has_adapter(model) else {}
    tensors = []
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        plain = name_without_adapter(name) if merged else name
        if plain is not None:
            tensors.append((plain, merged.get(plain, tensor)))
    total = hashlib.sha256()
    for name, tensor in sorted(tensors, key=itemgetter(0)):
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over vocabulary, rules, special tokens and chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    special = sorted((name, str(value)) for name, value in tokenizer.special_tokens_map.items())
    text = f"{rules}\n{special}\n{tokenizer.chat_template}"
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
