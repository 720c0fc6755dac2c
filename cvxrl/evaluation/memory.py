"""How many completions fit into memory at once. Imports no torch by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from cvxrl.policy.model import Policy

# Share of the free memory that one batch may take by this estimate. The rest is for what the estimate leaves out:
# fragmentation, workspaces, and the copy that is made when finished rows leave the cache.
MEMORY_SHARE = 0.4
# More rows than this no longer make a step cheaper per row, and progress would come in lumps.
MOST_ROWS = 512
# What is taken to be free where the system does not say (Windows, macOS).
_UNKNOWN = 2**32
_MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_CURRENT_USE = ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes")


def rows_that_fit(policy: Policy, prompt_tokens: int, new_tokens: int) -> int:
    """Completions to decode at a time, from 1 to `MOST_ROWS`.

    Args:
        policy: its configuration gives the bytes per token.
        prompt_tokens: longest prompt.
        new_tokens: longest completion.
    """
    budget = MEMORY_SHARE * free_bytes(policy.device)
    return max(1, min(MOST_ROWS, int(budget // bytes_per_row(policy, prompt_tokens, new_tokens))))


def bytes_per_row(policy: Policy, prompt_tokens: int, new_tokens: int) -> int:
    """Memory of one completion at its longest: key/value cache, prefill activations, logits and random numbers."""
    config = policy.model.config.get_text_config()
    element = next(policy.model.parameters()).element_size()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    cache = 2 * config.num_hidden_layers * kv_heads * head_dim * element * (prompt_tokens + new_tokens)
    # One layer's activations at a time: the stream, queries, and both halves of the feed-forward layer.
    feed_forward = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    prefill = prompt_tokens * (4 * config.hidden_size + heads * head_dim + 2 * feed_forward) * element
    # Drawing a token takes fp32 logits, log-probabilities and two float64 vectors of the vocabulary.
    drawing = config.vocab_size * (element + 2 * 4 + 2 * 8)
    return int(cache + prefill + drawing + 8 * new_tokens)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device; on the CPU no more than the container's limit leaves."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):
        return _UNKNOWN
    for limit, use in zip(_MEMORY_LIMITS, _CURRENT_USE, strict=True):
        try:
            free = min(free, int(Path(limit).read_text()) - int(Path(use).read_text()))
        except (OSError, ValueError):
            continue  # no such control group, or one without a limit ("max")
    return max(0, free)
