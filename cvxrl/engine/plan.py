"""What a recipe is going to do, in numbers, before anything heavy is loaded (no torch here)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cvxrl.policy.locate import locate
from cvxrl.recipe.advantage import DenseAdvantage, DenseDpoAdvantage
from cvxrl.recipe.lora import LoraSpec
from cvxrl.recipe.schema import Recipe, ScratchSpec

_BYTES = {"float32": 4, "bfloat16": 2}
# fp32 copies of a micro-batch's [tokens, V] logits that are alive at once: logits, their log-softmax, the target's,
# and the gradients flowing back through the last two.
_LOGIT_COPIES = 5
# Activations per token and layer in units of hidden_size: attention and gated feed-forward inputs kept for backward.
_ACTIVATION_FACTOR = 34

# Matrices that are no linear layers, or the output layer: usual names.
_HEAD = "lm_head"
_NOT_ADAPTED = {"embed_tokens", _HEAD, "embed_out", "wte", "wpe"}


@dataclass(frozen=True)
class Plan:
    """Numbers that `--dry-run` prints.

    Attributes:
        equation: per-token loss of the objective.
        reduction: how token losses become one number.
        sequences: sequences per step.
        max_tokens: most response tokens per step.
        optimizer_steps: optimizer steps in the whole run.
        parameters: number of parameters, or None if the configuration is not at hand.
        trainable: how many are trained: all of them, or those of an adapter beside them; None likewise.
        memory_bytes: estimated peak of parameters, optimizer state, activations and logits, or None.
    """

    equation: str
    reduction: str
    sequences: int
    max_tokens: int
    optimizer_steps: int
    parameters: int | None
    trainable: int | None
    memory_bytes: int | None


@dataclass(frozen=True)
class _Shape:
    parameters: int
    trainable: int
    hidden: int
    layers: int
    vocab: int


def describe(recipe: Recipe) -> Plan:
    """Plan of a run.

    Raises:
        UserError: the policy's files do not exist.
    """
    sequences = recipe.sequences_per_step
    shape = _shape(recipe)
    return Plan(
        equation=recipe.equation,
        reduction=recipe.reduction,
        sequences=sequences,
        max_tokens=sequences * recipe.rollout.max_new_tokens,
        optimizer_steps=recipe.train.steps * recipe.train.inner_epochs * recipe.train.minibatches,
        parameters=shape.parameters if shape else None,
        trainable=shape.trainable if shape else None,
        memory_bytes=_memory(recipe, shape) if shape else None,
    )


def _memory(recipe: Recipe, shape: _Shape) -> int:
    """Parameters, gradients and Adam's two moments, frozen copies, one micro-batch, and what is kept off-policy."""
    lora, frozen = recipe.model.lora, _frozen_policies(recipe)
    state = (3 * shape.trainable + (1 + frozen) * shape.parameters) * _BYTES[recipe.model.dtype]
    if lora is not None:
        state = 4 * shape.trainable * _BYTES[lora.dtype] + (1 + frozen) * shape.parameters * _BYTES[recipe.model.dtype]
    rows = min(recipe.train.micro_batch or recipe.sequences_per_step, recipe.sequences_per_step)
    tokens = rows * recipe.rollout.max_new_tokens
    logits = _LOGIT_COPIES * tokens * shape.vocab * 4
    activations = _ACTIVATION_FACTOR * tokens * shape.hidden * shape.layers * 4
    return state + logits + activations + _kept_logits(recipe, shape)


def _frozen_policies(recipe: Recipe) -> int:
    """Policies held beside the trained one; a verifier is taken to be as large as it.

    With an adapter, the reference is the policy's own weights without it.
    """
    reference = "reference_logprobs" in recipe.objective.needs or recipe.regularizer.kl_coefficient > 0
    reference = reference and recipe.model.lora is None
    verifiers = 0
    if recipe.data == "rollouts" and isinstance(recipe.advantage, DenseAdvantage):
        verifiers = 2 if isinstance(recipe.advantage, DenseDpoAdvantage) else 1
    return int(reference) + verifiers


def _kept_logits(recipe: Recipe, shape: _Shape) -> int:
    """Rollout logits of the whole step, which later passes over it compare with."""
    if recipe.train.inner_epochs * recipe.train.minibatches == 1 or "old_logits" not in recipe.objective.needs:
        return 0
    return recipe.sequences_per_step * recipe.rollout.max_new_tokens * shape.vocab * 4


def _shape(recipe: Recipe) -> _Shape | None:
    scratch = recipe.model.scratch
    if scratch is not None:
        return _scratch_shape(scratch)
    location = locate(recipe.model)
    config = Path(location.path) / "config.json"
    if not location.is_local or not config.is_file():
        return None
    raw = json.loads(config.read_text(encoding="utf-8"))
    hidden, layers, vocab = (raw.get(key) for key in ("hidden_size", "num_hidden_layers", "vocab_size"))
    if not all(isinstance(value, int) for value in (hidden, layers, vocab)):
        return None
    stored = dict(shape for file in Path(location.path).glob("*.safetensors") for shape in _stored_shapes(file))
    parameters = sum(math.prod(shape) for shape in stored.values())
    lora = recipe.model.lora
    trainable = parameters if lora is None else _adapter_parameters(lora, stored)
    return _Shape(parameters, trainable, hidden, layers, vocab) if parameters else None


def _scratch_shape(spec: ScratchSpec) -> _Shape:
    """Parameters of a Qwen3 decoder with tied embeddings."""
    vocab = len(set(spec.alphabet)) + 2
    attention = spec.hidden_size * spec.head_dim * (2 * spec.heads + 2 * spec.kv_heads) + 2 * spec.head_dim
    per_layer = attention + 3 * spec.hidden_size * spec.intermediate_size + 2 * spec.hidden_size
    parameters = vocab * spec.hidden_size + spec.layers * per_layer + spec.hidden_size
    return _Shape(parameters, parameters, spec.hidden_size, spec.layers, vocab)


def _stored_shapes(file: Path) -> Iterator[tuple[str, list[int]]]:
    """Name and shape of every stored tensor, read from the file's header alone."""
    with file.open("rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    yield from ((name, entry["shape"]) for name, entry in header.items() if name != "__metadata__")


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
