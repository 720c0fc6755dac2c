"""A new policy: a small Qwen3-style decoder with a tokenizer of single characters."""

from __future__ import annotations

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from cvxrl.recipe.schema import ScratchSpec

PAD, EOS = "<pad>", "<eos>"


def build_tokenizer(alphabet: str, context: int) -> PreTrainedTokenizerFast:
    """Tokenizer with one token per character of ``alphabet`` (order kept), after padding and end-of-text."""
    symbols = [PAD, EOS, *dict.fromkeys(alphabet)]
    core = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=EOS, model_max_length=context, padding_side="left"
    )


def build_model(spec: ScratchSpec, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """Decoder with random weights that depend only on ``seed`` and ``spec``; embeddings are tied."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        head_dim=spec.head_dim,
        intermediate_size=spec.intermediate_size,
        max_position_embeddings=spec.context,
        initializer_range=spec.init_std,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3ForCausalLM(config)
