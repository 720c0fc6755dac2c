"""Sizes of a policy, by its configuration and the headers of its weight files, where there are any (no torch here)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvxrl.errors import Problem, UserError
from cvxrl.policy.architecture import cached_directory, known_config, parameter_shapes
from cvxrl.policy.locate import locate
from cvxrl.policy.weight_files import missing_files, stored_shapes
from cvxrl.recipe.model import LoraSpec, ModelSpec, ScratchSpec

# Matrices that are no linear layers, or the output layer: usual names.
_HEAD = "lm_head"
_CONFIG = "config.json"
_NOT_ADAPTED = {"embed_tokens", _HEAD, "embed_out", "wte", "wpe"}


@dataclass(frozen=True)
class Shape:
    """A decoder with gated feed-forward layers.

    Attributes:
        parameters: number of weights.
        trainable: how many are trained: all of them, or those of an adapter beside them.
        hidden: width of the residual stream.
        layers: decoder layers.
        vocab: tokens.
        queries: width of all query heads together.
        keys: width of all key heads together.
        feed_forward: width of the feed-forward layer.
        query_norm: whether queries and keys are normalised, as in Qwen3.
        tied: whether the output layer is the embedding.
    """

    parameters: int
    trainable: int
    hidden: int
    layers: int
    vocab: int
    queries: int
    keys: int
    feed_forward: int
    query_norm: bool
    tied: bool = True

    @property
    def head(self) -> int:
        """Weights of the output layer."""
        return self.vocab * self.hidden

    @property
    def trunk(self) -> int:
        """Weights of the layers between embedding and output layer: every token meets each of them once."""
        return self.parameters - self.head * (1 if self.tied else 2)


def shape_of(spec: ModelSpec) -> Shape | None:
    """Sizes of the policy that a recipe names, or None if nothing at hand says them.

    Of a policy on the Hub, by what an earlier download left in the cache, or by what is public of it: no network.

    Raises:
        UserError: the policy's files do not exist or are damaged.
    """
    if spec.scratch is not None:
        return _of_scratch(spec.scratch)
    location = locate(spec)
    directory = Path(location.path) if location.is_local else cached_directory(spec)
    if directory is not None and (directory / _CONFIG).is_file():
        raw, stored = _read(directory / _CONFIG), _stored(directory)
    else:
        raw, stored = {} if location.is_local else known_config(location.path), {}
    stored = stored or parameter_shapes(raw)
    parameters = sum(math.prod(shape) for shape in stored.values())
    trainable = parameters if spec.lora is None else _adapter_parameters(spec.lora, stored)
    return _of_config(raw, parameters, trainable, f"{_HEAD}.weight" not in stored) if parameters else None


def _stored(directory: Path) -> dict[str, list[int]]:
    """Shapes in the weight files of a directory; empty where not all of them are there."""
    if missing_files(directory):
        return {}
    return dict(shape for file in directory.glob("*.safetensors") for shape in stored_shapes(file))


def _read(config: Path) -> Mapping[str, Any]:
    try:
        raw = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(Problem(f"cannot be read: {error}", "model.path", str(config), "copy it again")) from None
    if not isinstance(raw, dict):
        raise UserError(Problem("is no JSON object", "model.path", str(config), "copy it again"))
    return raw


def _of_config(raw: Mapping[str, Any], parameters: int, trainable: int, tied: bool) -> Shape | None:
    keys = ("hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads")
    sizes = [value for key in keys if isinstance(value := raw.get(key), int)]
    if len(sizes) < len(keys):
        return None
    hidden, layers, vocab, heads = sizes
    head_dim = raw.get("head_dim") or hidden // max(1, heads)
    return Shape(
        parameters=parameters,
        trainable=trainable,
        hidden=hidden,
        layers=layers,
        vocab=vocab,
        queries=heads * head_dim,
        keys=(raw.get("num_key_value_heads") or heads) * head_dim,
        feed_forward=raw.get("intermediate_size") or 4 * hidden,
        query_norm=str(raw.get("model_type", "")).startswith("qwen3"),
        tied=tied,
    )


def _of_scratch(spec: ScratchSpec) -> Shape:
    """Qwen3 with tied embeddings."""
    vocab = len(set(spec.alphabet)) + 2
    queries, keys = spec.head_dim * spec.heads, spec.head_dim * spec.kv_heads
    attention = spec.hidden_size * (2 * queries + 2 * keys) + 2 * spec.head_dim
    per_layer = attention + 3 * spec.hidden_size * spec.intermediate_size + 2 * spec.hidden_size
    parameters = vocab * spec.hidden_size + spec.layers * per_layer + spec.hidden_size
    sizes = (spec.hidden_size, spec.layers, vocab, queries, keys, spec.intermediate_size)
    return Shape(parameters, parameters, *sizes, query_norm=True)


def _adapter_parameters(spec: LoraSpec, stored: Mapping[str, Sequence[int]]) -> int:
    """Values in A and B beside every adapted matrix, as far as names tell which are linear layers."""
    total = 0
    embedding = {f"{_HEAD}.weight": shape for name, shape in stored.items() if name.endswith("embed_tokens.weight")}
    for name, shape in {**embedding, **stored}.items():  # a tied output layer is not stored
        module = name.removesuffix(".weight")
        if spec.targets == "all-linear":
            adapted = len(shape) == 2 and module.rpartition(".")[2] not in _NOT_ADAPTED
        else:
            adapted = any(f".{module}".endswith(f".{target}") for target in spec.targets)
        total += spec.rank * sum(shape) if adapted and name.endswith(".weight") else 0
    return total
