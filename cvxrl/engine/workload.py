"""Floating-point operations and bytes of a step on each rank, counted, and the time that they take at stated rates.

A matrix of n weights takes 2 n operations per token. What is left out: grading, evaluations, checks, and whatever is
neither a matrix product nor a byte moved. No torch here.
"""

from __future__ import annotations

from dataclasses import dataclass

from cvxrl.engine.passes import Lengths, Pass
from cvxrl.engine.placed import Placed, served, vllm_of
from cvxrl.engine.sizes import Shape
from cvxrl.recipe.advantage import DenseAdvantage, DenseDpoAdvantage, GaeAdvantage
from cvxrl.recipe.lco import LcoKldSpec, LcoSpec
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.step import FixedStep
from cvxrl.recipe.training import AdamwSpec, SgdSpec

_BYTES = {"float32": 4, "bfloat16": 2}
_FP32 = 4
# Shares tried in a searched step that goes on from the last one: one that is too long, and the one that is taken.
_TRIED = 2


@dataclass(frozen=True)
class Rates:
    """What a device does in a second, of what it could: by default an H100's data sheet, and shares that are guesses.

    Attributes:
        flops: half-precision operations: 40% of 989e12.
        fp32: of its fp32 operations, which sums over the vocabulary are made in: 40% of 67e12.
        bandwidth: bytes from its memory: 70% of 3.35e12.
        link: bytes to another rank of the same machine: 70% of 450e9.
        network: bytes to another machine, a card of 400 Gb/s for each rank: 70% of 50e9.
        machine: ranks of one machine.
    """

    flops: float = 0.4 * 989e12
    fp32: float = 0.4 * 67e12
    bandwidth: float = 0.7 * 3.35e12
    link: float = 0.7 * 450e9
    network: float = 0.7 * 50e9
    machine: int = 8


@dataclass(frozen=True)
class Seconds:
    """Time of a step, part by part.

    Attributes:
        sampling: prompts and tokens, by operations or by the bytes of weights and cache, whichever takes longer; where
            a server samples, that of one device which does it for all ranks.
        reading: passes without gradient: old logits, references, verifiers, values, the KL for the log.
        update: forward and backward passes, and the tried ones of a search, on the rank with the most to do.
        optimizer: reading and writing of its state.
        exchange: weights and gradients between ranks, and weights to a server.
        beside: whether a server samples while ranks update (`rollout.ahead`); nothing else is beside anything.
    """

    sampling: float
    reading: float
    update: float
    optimizer: float
    exchange: float
    beside: bool = False

    @property
    def step(self) -> float:
        """All of it."""
        rest = self.reading + self.update + self.optimizer + self.exchange
        return max(self.sampling, rest) if self.beside else self.sampling + rest


@dataclass(frozen=True)
class _Counter:
    """Operations of passes over some sequences, all as long as the mean."""

    recipe: Recipe
    shape: Shape
    rates: Rates
    prompt: float
    response: float

    @property
    def half(self) -> bool:
        """Whether the layers compute in half precision."""
        return self.recipe.model.dtype == "bfloat16" or self.recipe.train.precision == "bf16"

    def operations(self, sequences: float, prompts: float) -> float:
        """Of a forward pass through the layers, with so many prompts read for so many sequences."""
        tokens = prompts * self.prompt + sequences * self.response
        attended = prompts * self.prompt**2 / 2 + sequences * self.response * (self.prompt + self.response / 2)
        return 2 * self.shape.trunk * tokens + 4 * self.shape.layers * self.shape.queries * attended

    def head(self, sequences: float, products: float) -> float:
        """Seconds of so many products of all response tokens with the output matrix."""
        half = self.half and self.recipe.train.loss != "chunked"  # chunks are projected and summed in fp32
        operations = 2 * self.shape.head * sequences * self.response * products
        return operations / (self.rates.flops if half else self.rates.fp32)

    def own(self, sequences: float) -> float:
        """Seconds of a forward pass in which each prompt is read once, or by every sequence for itself."""
        alone = self.recipe.train.gradient_checkpointing
        prompts = sequences if alone else sequences / self.recipe.group_size
        return self.operations(sequences, prompts) / (self.rates.flops if self.half else self.rates.fp32)


def seconds(recipe: Recipe, shape: Shape, placed: Placed, rates: Rates) -> Seconds:
    """Time of a step by count, every reply as long as the recipe allows (of made sums: as their demonstrations)."""
    lengths = Lengths.of(recipe, placed)
    prompt, response = (sum(some) / len(some) for some in (lengths.prompts, lengths.responses))
    count = _Counter(recipe, shape, rates, prompt, response)
    steps = recipe.train.inner_epochs * recipe.train.minibatches
    return Seconds(
        sampling=_sampling(count, placed) if recipe.data == "rollouts" else 0.0,
        reading=_reading(count, placed, steps),
        update=steps * _update(count, placed),
        optimizer=steps * _optimizer(recipe, shape) / placed.share / rates.bandwidth,
        exchange=_exchange(count, placed, lengths, steps),
        beside=recipe.rollout.ahead and served(recipe),
    )


def _sampling(count: _Counter, placed: Placed) -> float:
    recipe, shape, vllm = count.recipe, count.shape, vllm_of(count.recipe)
    rows = recipe.sequences_per_step if served(recipe) else placed.sequences
    asked = vllm.requests * (placed.ranks if served(recipe) else 1) if vllm is not None else recipe.rollout.batch
    batch = min(rows, asked or rows)
    width = _BYTES[recipe.model.dtype]
    operations = count.operations(rows, rows) + 2 * shape.head * rows * count.response
    computed = operations / (count.rates.flops if recipe.model.dtype == "bfloat16" else count.rates.fp32)
    cache = 2 * shape.layers * shape.keys * width * (count.prompt + count.response / 2)
    # Every token of a batch reads all weights once, and each row its own keys and values.
    read = count.response * (-(-rows // batch) * shape.parameters * width + rows * cache)
    return recipe.rollout.rounds * max(computed, read / count.rates.bandwidth)


def _reading(count: _Counter, placed: Placed, steps: int) -> float:
    recipe, chunked = count.recipe, count.recipe.train.loss == "chunked"
    trunks, heads = 0.0, 0.0
    own = recipe.rollout.old_logprobs == "trainer"
    if recipe.data == "rollouts" and own and (steps > 1 or recipe.rollout.lag):
        # Hidden states are enough where later passes project them.
        trunks, heads = 1.0, 0.0 if chunked and "old_logits" in recipe.objective.needs else 1.0
    reference = "reference_logprobs" in recipe.objective.needs or recipe.regularizer.kl_coefficient > 0
    trunks, heads = trunks + reference, heads + reference
    if recipe.data == "rollouts" and isinstance(recipe.advantage, GaeAdvantage):
        trunks += 1
    if recipe.data == "rollouts" and isinstance(recipe.advantage, DenseAdvantage):
        scored = 2 + isinstance(recipe.advantage, DenseDpoAdvantage)
        trunks, heads = trunks + scored, heads + scored
    logged = min(recipe.logging.kl_sequences, placed.sequences)
    read = trunks * count.own(placed.sequences) + count.head(placed.sequences, heads)
    return read + count.own(logged) + count.head(logged, 1)


def _update(count: _Counter, placed: Placed) -> float:
    """One optimizer step: forward, backward, the forward pass again where layers are checkpointed, and a search."""
    recipe, forward = count.recipe, count.own(placed.fullest)
    # Frozen weights have no gradient of their own.
    backward = 2 if recipe.model.lora is None else 1
    passes = 1 + backward + recipe.train.gradient_checkpointing
    products = _products(recipe) if recipe.train.loss == "chunked" else 1 + backward
    tried = _tried(recipe)
    return (passes + tried) * forward + count.head(placed.fullest, products + tried)


def _tried(recipe: Recipe) -> float:
    """Shares tried in an optimizer step, on average."""
    return 0.0 if isinstance(recipe.step, FixedStep) else min(_TRIED, recipe.step.max_evaluations) / recipe.step.every


def _products(recipe: Recipe) -> int:
    """Products with the output matrix of a loss in chunks and its entropies (docs/linear.md)."""
    objective = recipe.objective
    plain = isinstance(objective, LcoSpec) and not isinstance(objective, LcoKldSpec) and objective.tilt == "exponential"
    if plain:
        return 1  # rows of it alone, and a pass for the entropies
    reused = recipe.train.inner_epochs * recipe.train.minibatches > 1 or recipe.rollout.lag > 0
    frozen = isinstance(objective, LcoSpec) and objective.target == "frozen" and reused
    regularised = bool(recipe.regularizer.kl_coefficient or recipe.regularizer.entropy_coefficient)
    return 3 + (frozen or objective.coupling != "token") + 3 * regularised


def _optimizer(recipe: Recipe, shape: Shape) -> float:
    """Bytes of a step: weights, gradients, moments and copies, each read, and all but gradients written."""
    optim, width = recipe.optim, _BYTES[recipe.model.dtype if recipe.model.lora is None else recipe.model.lora.dtype]
    moments = 2 if isinstance(optim, AdamwSpec) else int(isinstance(optim, SgdSpec) and optim.momentum > 0)
    state = (moments + optim.master_weights) * (_FP32 if optim.master_weights else width)
    return shape.trainable * (2 * width + width + 2 * state)


def _exchange(count: _Counter, placed: Placed, lengths: Lengths, steps: int) -> float:
    """Bytes that a rank gets from the others and gives to them, over the slowest line between them."""
    recipe, shape, rates = count.recipe, count.shape, count.rates
    weights = shape.parameters * _BYTES[recipe.model.dtype]
    sent = weights / rates.network if served(recipe) else 0.0
    if placed.ranks == 1:
        return sent
    others, rate = (placed.ranks - 1) / placed.ranks, rates.link if placed.ranks <= rates.machine else rates.network
    sums = shape.trainable * _FP32
    if not placed.sharded:
        return sent + steps * 2 * others * sums / rate
    largest = Pass.of(recipe, lengths, placed)
    passes = -(-placed.fullest // max(1, largest.sequences))
    tried = _tried(recipe)
    # Gathered forward and backward, gradients scattered; whole to sample, to read, and wherever a step is tried.
    moved = steps * (passes * (2 * weights + sums) + tried * weights) + 2 * weights
    return sent + others * moved / rate
