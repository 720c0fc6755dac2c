"""Tiny random models of the decoder families that transformers knows, and directories with one and a tokenizer."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch

from cvxrl.policy.load import build_tokenizer

ALPHABET = "0123456789+=;? AaBbCcDdEeFfGgHhIiJjKkLlMm:.,Qustonwr\n"
VOCABULARY = 64
MOST_PARAMETERS = 3_000_000
# Settings by whatever name a family gives them; a family takes those that it has.
_SIZES: dict[str, Any] = {
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "attention_hidden_size", "lru_width", "embedding_size"], 32),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers", "encoder_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "num_heads", "n_heads"], 4),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads", "linear_num_value_heads"], 4),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads", "linear_num_key_heads", "num_experts_per_tok"], 2),
    **dict.fromkeys(["intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"], 48),
    **dict.fromkeys(["decoder_ffn_dim", "encoder_ffn_dim"], 48),
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len"], 64),
    **dict.fromkeys(["num_experts", "num_local_experts", "n_routed_experts"], 4),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size", "sliding_window"], 16),
    **dict.fromkeys(["head_dim", "v_head_dim", "linear_key_head_dim", "linear_value_head_dim", "q_lora_rank"], 8),
    **dict.fromkeys(["qk_rope_head_dim", "rotary_dim"], 8),
    **dict.fromkeys(["kv_lora_rank", "qk_nope_head_dim", "state_size", "ssm_state_size", "mamba_d_state"], 8),
    **dict.fromkeys(["mamba_n_heads", "mamba_d_head", "mamba_num_heads", "mamba_head_dim"], 8),
    **dict.fromkeys(["expand", "mamba_expand"], 2),
    **dict.fromkeys(["decoder_sparse_step", "first_k_dense_replace", "n_shared_experts", "n_group", "topk_group"], 1),
    **dict.fromkeys(["mamba_n_groups", "n_groups"], 1),
    "word_embed_proj_dim": 32,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
# What a family cannot do with the sizes above.
_OWN: dict[str, dict[str, Any]] = {
    "falcon_h1": {"mamba_d_ssm": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "xmod": {"default_language": "en_XX"},
    # As many keys as queries, which are made from one latent vector.
    **{key: {"num_key_value_heads": 4} for key in ("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32")},
    **{key: {"num_key_value_heads": 4} for key in ("glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu")},
}


def families() -> list[str]:
    """Names of the decoders that transformers knows, as configurations call them."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


class CannotBuildError(Exception):
    """Why a family needs more than the usual settings."""


def tiny_family(kind: str, seed: int = 0, **settings: Any) -> Any:
    """A random model of a family in evaluation mode, or None if it needs more than the usual settings."""
    try:
        return build_family(kind, seed, **settings)
    except CannotBuildError:
        return None


def build_family(kind: str, seed: int = 0, **settings: Any) -> Any:
    """As `tiny_family`.

    Raises:
        CannotBuildError: with the reason.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    made = CONFIG_MAPPING[kind]
    known = {*inspect.signature(made.__init__).parameters, *getattr(made, "__dataclass_fields__", {})}
    try:
        config = made(**{k: v for k, v in _SIZES.items() if k in known} | _OWN.get(kind, {}) | settings)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # sizes that a family forbids have as many types of error as there are families
        raise CannotBuildError(" ".join(f"{type(error).__name__}: {error}".split())[:110]) from error
    size = sum(p.numel() for p in model.parameters())
    if size > MOST_PARAMETERS:
        raise CannotBuildError(f"{size:,} parameters even so")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():  # initial values leave biases and output layers at zero
            if parameter.is_floating_point():
                parameter.data += 0.1 * torch.randn(parameter.shape)
    return model


def save_family(kind: str, directory: Path, seed: int = 0, **settings: Any) -> Path:
    """Directory that holds a tiny model and a tokenizer with a token for each character of `ALPHABET`."""
    model = tiny_family(kind, seed, **settings)
    assert model is not None, kind
    model.save_pretrained(directory)
    build_tokenizer(ALPHABET, 64).save_pretrained(directory)
    return directory
