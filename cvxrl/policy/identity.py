"""Which policy it is: digests of weights and tokenizer, equal wherever and by whichever command they are taken."""

from __future__ import annotations

import hashlib

import torch
from transformers import PreTrainedTokenizerBase


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of every parameter and buffer; matrices that are tied count once."""
    total = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
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
