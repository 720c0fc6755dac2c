"""Names and shapes of a policy's parameters by its configuration alone, where no weight file is at hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from cvxrl.recipe.model import ModelSpec

# Whether queries, keys and values have a bias where the configuration does not say, and whether both of the former have
# a norm: families whose decoders have these parameters and no others.
_FAMILIES = {"llama": (False, False), "mistral": (False, False), "qwen2": (True, False), "qwen3": (False, True)}
_CONFIG = "config.json"


def known_config(hub_id: str) -> Mapping[str, Any]:
    """What is public of a model on the Hub, as its config.json has it; of an instruction-tuned one, its base's.

    Empty for a model that is not listed here.
    """
    text = (resources.files("cvxrl") / "assets" / "architectures.json").read_text(encoding="utf-8")
    found: Mapping[str, Any] = json.loads(text).get(hub_id.removesuffix("-Instruct"), {})
    return found


def cached_directory(spec: ModelSpec) -> Path | None:
    """Directory of the Hub's cache with the configuration of a policy that was downloaded once."""
    from huggingface_hub import try_to_load_from_cache

    assert spec.path is not None
    try:
        found = try_to_load_from_cache(spec.path, _CONFIG, revision=spec.revision)
    except ValueError:  # no id that the Hub could have
        return None
    return Path(found).parent if isinstance(found, str) else None


def parameter_shapes(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """Parameters of a plain decoder, named as in its weight files; empty for families that are not known here.

    Args:
        config: contents of a config.json.
    """
    if config.get("model_type") not in _FAMILIES:
        return {}
    try:
        return dict(_parameters(config))
    except (KeyError, TypeError, ZeroDivisionError):
        return {}


def _parameters(config: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    bias, norm = _FAMILIES[config["model_type"]]
    bias, mlp_bias = bool(config.get("attention_bias", bias)), bool(config.get("mlp_bias"))
    hidden, heads, inner, vocab = (
        config[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size")
    )
    head = config.get("head_dim") or hidden // heads
    queries, keys = heads * head, (config.get("num_key_value_heads") or heads) * head
    yield "model.embed_tokens.weight", [vocab, hidden]
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
            yield from _linear(f"{at}.self_attn.{name}", rows, hidden, bias)
        # Only Qwen2 has none on the way out.
        yield from _linear(f"{at}.self_attn.o_proj", hidden, queries, bias and config["model_type"] != "qwen2")
        if norm:
            yield f"{at}.self_attn.q_norm.weight", [head]
            yield f"{at}.self_attn.k_norm.weight", [head]
        for name in ("gate_proj", "up_proj"):
            yield from _linear(f"{at}.mlp.{name}", inner, hidden, mlp_bias)
        yield from _linear(f"{at}.mlp.down_proj", hidden, inner, mlp_bias)
        yield f"{at}.input_layernorm.weight", [hidden]
        yield f"{at}.post_attention_layernorm.weight", [hidden]
    yield "model.norm.weight", [hidden]
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", [vocab, hidden]


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, list[int]]]:
    yield f"{name}.weight", [rows, columns]
    if bias:
        yield f"{name}.bias", [rows]
