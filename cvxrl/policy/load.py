"""Load a policy and its tokenizer, or make new ones, or say what is wrong with the path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from cvxrl.errors import Problem, UserError
from cvxrl.policy.adapter import add_adapter
from cvxrl.policy.adapter_check import require_used
from cvxrl.policy.merge import merge_saved
from cvxrl.policy.model import Policy
from cvxrl.policy.pretrained import DTYPES, load_pretrained
from cvxrl.policy.usable import require_finite_weights, settle_tokens
from cvxrl.ranks import this_rank
from cvxrl.recipe.model import ModelSpec, ScratchSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast


def pick_device(name: str) -> torch.device:
    """Device for `train.device`: on ranks, each has a GPU of its own.

    Raises:
        UserError: CUDA is asked for and there is none, or there are more ranks on this machine than GPUs.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(Problem("no CUDA device is available", "train.device", remedy="set it to auto or cpu"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    rank = this_rank()
    if name != "cuda" or rank is None:
        return torch.device(name)
    if rank.local >= (count := torch.cuda.device_count()):
        what = f"a machine with {count} GPUs cannot hold {rank.local + 1} ranks, which have one each"
        raise UserError(Problem(what, "placement.ranks", remedy=f"launch {count} on it: --nproc-per-node {count}"))
    return torch.device("cuda", rank.local)


def load_policy(spec: ModelSpec, device: torch.device, seed: int = 0) -> Policy:
    """Load or initialise the policy that a recipe names.

    Args:
        spec: recipe section `model`.
        device: where the parameters go.
        seed: seed of the initial weights of a scratch policy, or of an adapter.

    Raises:
        UserError: the files are missing, damaged, unreachable or not a causal language model; it cannot be used
            (`policy.usable`), or its own forward pass cannot (`policy.checked`); or an adapter does not fit it.
    """
    if spec.scratch is not None:
        tokenizer: PreTrainedTokenizerBase = build_tokenizer(spec.scratch.alphabet, spec.scratch.context)
        model: PreTrainedModel = build_model(spec.scratch, tokenizer, seed)
    else:
        tokenizer, model = load_pretrained(spec)
    settle_tokens(model, tokenizer, spec)
    model.to(device=device, dtype=DTYPES[spec.dtype])
    if spec.adapter is not None:
        merge_saved(model, spec.adapter)
    require_finite_weights(model, spec.adapter or spec.path or "")
    if spec.lora is not None:
        add_adapter(model, spec.lora, seed)
    policy = Policy(model.eval(), tokenizer)
    vocabulary = policy.checked.vocabulary
    if spec.lora is not None:
        require_used(model, vocabulary.ordinary)
    return policy


PAD, EOS = "<pad>", "<eos>"


def build_tokenizer(alphabet: str, context: int) -> PreTrainedTokenizerFast:
    """Tokenizer with one token per character of ``alphabet`` (order kept), after padding and end-of-text."""
    from transformers import PreTrainedTokenizerFast

    symbols = [PAD, EOS, *dict.fromkeys(alphabet)]
    core = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token=PAD))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    core.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=PAD, eos_token=EOS, model_max_length=context, padding_side="left"
    )


def build_model(spec: ScratchSpec, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """Decoder with random weights that depend only on ``seed`` and ``spec``; embeddings are tied."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

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
