"""A tiny random model of any family of causal language models that transformers knows, from its configuration alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VOCABULARY = 64
_LARGEST = 3_000_000
# What configurations call their sizes, and how small; a name that a configuration lacks is passed over.
_SIZES = {
    2: "num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers num_blocks num_key_value_heads "
    "num_kv_heads kv_n_heads num_experts_per_tok moe_topk moe_k top_k_experts num_experts_per_token",
    4: "num_attention_heads n_head n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts "
    "num_local_experts n_routed_experts moe_num_experts linear_num_heads index_n_heads index_topk attention_heads",
    8: "head_dim attention_head_dim kv_channels qk_nope_head_dim qk_rope_head_dim v_head_dim kv_lora_rank q_lora_rank "
    "mamba_d_state state_size ssm_state_size mamba_d_head mamba_n_heads mamba_head_dim mamba_num_heads rotary_dim "
    "index_head_dim linear_head_dim linear_key_head_dim linear_value_head_dim n_mamba_heads global_head_dim "
    "laurel_rank",
    16: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size mamba_dt_rank sliding_window "
    "hidden_size_per_layer_input moe_shared_expert_intermediate_size pronunciation_embed_dim shape_embed_dim",
    32: "hidden_size d_model n_embd dim embed_dim word_embed_proj_dim embedding_size emb_dim lru_width time_step_rank "
    "dim_model hidden_dim",
    64: "intermediate_size n_inner ffn_dim decoder_ffn_dim encoder_ffn_dim d_ff dff dim_ff vocab_size ffn_hidden_size "
    "vocab_size_per_layer_input shared_intermediate_size shape_vocab_size pronunciation_vocab_size",
    256: "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions",
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}
# Where sizes alone do not make a configuration that its family accepts.
_MORE: dict[str, dict[str, Any]] = {
    "axk2": {"num_key_value_heads": 4},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "dots1": {"n_shared_experts": 1},
    "ernie4_5_moe": {"moe_layer_end_index": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0, "layer_types": ["sliding_attention", "full_attention"]},
    "gemma4_text": {"final_logit_softcapping": 30.0, "per_layer_config": None},
    "gemma4_unified_text": {"final_logit_softcapping": 30.0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 16},
    "falcon_h1": {"mamba_d_ssm": 64, "lm_head_multiplier": 0.5, "key_multiplier": 0.7},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"], "num_key_value_heads": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kimi_linear": {"layer_types": ["linear_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "n_groups": 1},
    "minicpm3": {"num_key_value_heads": 4},
    "nemotron_h": {"n_groups": 1},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_moe_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen4_exp_text": {"layer_types": ["linear_attention", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "roc_bert": {"enable_pronunciation": False, "enable_shape": False},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": ["linear_attention", "hybrid"]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"]},
}


class CannotBuildError(Exception):
    """Why a family has no tiny model here."""


def families() -> list[str]:
    """Model types of every family that `AutoModelForCausalLM` makes."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(family: str, **changes: Any) -> Any:
    """A configuration with two layers of width 32 and 64 tokens."""
    from transformers import CONFIG_MAPPING

    kind = CONFIG_MAPPING[family]
    values = dict(_small(kind().to_dict()))
    return kind(**{**values, **_MORE.get(family, {}), **changes})


def _small(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        number = value is None or (isinstance(value, int) and not isinstance(value, bool))
        if name in SIZES and number and (value is not None or "_experts" not in name):
            yield name, SIZES[name]
        elif name in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
            yield name, {"pad_token_id": 0, "bos_token_id": 1}.get(name, 2)
        elif name == "is_decoder":
            yield name, True
        elif name.endswith("_token_id") and isinstance(value, int) and value >= VOCABULARY:
            yield name, VOCABULARY - 1
        elif name in ("text_config", "attn_config", "ffn_config") and isinstance(value, dict):
            yield name, {**value, **dict(_small(value))}


def build(family: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model, every parameter off its initial value, so that none of them hides behind a 0 or 1.

    Raises:
        CannotBuildError: the family's configuration accepts no such sizes, or needs packages that are not here.
    """
    from transformers import AutoModelForCausalLM

    try:
        config = tiny_config(family, **changes)
        with torch.device("meta"):
            size = sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > _LARGEST:
            raise CannotBuildError(f"has {size:,} parameters when its text sizes are small")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
        return model
    except CannotBuildError:
        raise
    except Exception as error:  # the library's own checks, of any kind
        raise CannotBuildError(f"{type(error).__name__}: {' '.join(str(error).split())[:120]}") from error
