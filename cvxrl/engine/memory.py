"""Peak memory of a run, before anything heavy is loaded (no torch here)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cvxrl.engine.micro_batches import Limit, by_length, whole_groups
from cvxrl.engine.sizes import Shape
from cvxrl.errors import UserError
from cvxrl.evaluation.memory import MOST_ROWS
from cvxrl.recipe.advantage import DenseAdvantage, DenseDpoAdvantage
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.step import FixedStep, LineSearchStep, TrustRegionStep
from cvxrl.recipe.task import MadeSource
from cvxrl.recipe.training import AdamwSpec, SgdSpec
from cvxrl.tasks import load_task

_BYTES = {"float32": 4, "bfloat16": 2}
_FP32 = 4
# [N, V] tensors in fp32 alive at once: the model's logits, those over temperature, what the loss keeps of them, and
# the gradient flowing back.
_LOGIT_COPIES = 5
# Bytes per row and token of the vocabulary when a token is drawn: fp32 logits and log-probabilities, two fp64 sums.
_DRAWING = 2 * 4 + 2 * 8
# What all chunks of logits may take (`objectives.linear.sweep`).
_CHUNK_BYTES = 160 * 2**20
# Bytes of a token that waits to be trained on: its number as a Python object in a list, log-probabilities, credit.
_WAITING = 64
# A prompt whose length is not known before its task and the tokenizer are loaded.
_ASSUMED_PROMPT_TOKENS = 48
# What a pass takes of the heap, by what its tensors take: freed blocks leave holes in which the next ones do not fit.
# Measured on the recipes of docs/performance.md (benchmarks/memory_plan.py).
_HOLES = 1.25
# Sequences of a step that are looked at one by one; the rest are taken to be like them.
_LOOKED_AT = 8192


@dataclass(frozen=True)
class Footprint:
    """Bytes beyond what the interpreter and its libraries take.

    Attributes:
        state: weights, optimizer state, frozen policies, and rollout logits kept for later passes.
        gradients: of the trained weights; they live until the next step's first backward pass.
        tried: while a step is searched, copies of the trained weights and a pass without gradient.
        update: what one forward and backward pass keeps for its micro-batch.
        sampling: key/value cache and the drawing of tokens, in training or evaluation.
        micro_batches: whether there are several passes, so that gradients and a pass's activations coexist.
    """

    state: int
    gradients: int
    tried: int
    update: int
    sampling: int
    micro_batches: bool

    @property
    def peak(self) -> int:
        """Largest of the phases of a step."""
        update, sampling = int(_HOLES * self.update), int(_HOLES * self.sampling)
        passing = update + self.gradients if self.micro_batches else max(update, self.gradients)
        return self.state + max(passing, self.tried, sampling + self.gradients)


@dataclass(frozen=True)
class Lengths:
    """Tokens of the prompts of a step and of their responses, sequence by sequence; of a large step, its beginning."""

    prompts: Sequence[int]
    responses: Sequence[int]

    @classmethod
    def of(cls, recipe: Recipe) -> Lengths:
        """As a built-in task's demonstrations, a token per character; of other tasks, a guess and the limit."""
        source, limit, group = recipe.task.source, recipe.rollout.max_new_tokens, recipe.group_size
        count = min(recipe.sequences_per_step, _LOOKED_AT)
        if not isinstance(source, MadeSource) or recipe.task.template != "none" or recipe.task.instruction:
            return cls([_ASSUMED_PROMPT_TOKENS] * count, [limit] * count)
        task = load_task(recipe.task, recipe.seed)
        drawn = [task.train(i) for i in range(-(-count // group))]
        examples = [drawn[i // group] for i in range(count)]
        responses = [min(limit, len(e.demonstration or "") + 1) for e in examples]
        return cls([len(e.prompt) for e in examples], responses)


def footprint(recipe: Recipe, shape: Shape) -> Footprint:
    """What a run will take."""
    lengths = Lengths.of(recipe)
    whole = Pass.of(recipe, lengths)
    loss = _chunked(recipe, shape, whole) if recipe.train.loss == "chunked" else _full(shape, whole)
    return Footprint(
        state=_state(recipe, shape) + _kept(recipe, shape),
        tried=_tried(recipe, shape, loss),
        gradients=shape.trainable * _trained_width(recipe),
        update=activations(recipe, shape, whole) + _flowing(recipe, shape, whole) + loss,
        sampling=_sampling(recipe, shape, lengths),
        micro_batches=whole.sequences < recipe.sequences_per_step // recipe.train.minibatches,
    )


@dataclass(frozen=True)
class Pass:
    """The largest forward pass with gradient.

    Attributes:
        sequences: in it.
        tokens: that run through the layers, padding included.
        attended: keys that queries of the pass look at, summed over its rows.
        responses: tokens with a loss.
    """

    sequences: int
    tokens: int
    attended: int
    responses: int

    @classmethod
    def of(cls, recipe: Recipe, lengths: Lengths) -> Pass:
        """The fullest of the passes that one optimizer step is split into."""
        parts = _split(recipe, lengths)
        fullest = max((cls._of(recipe, lengths, part) for part in parts), key=lambda run: run.tokens)
        share = recipe.sequences_per_step // recipe.train.minibatches
        if len(parts) > 1 or fullest.sequences == share:
            return fullest
        # Everything at once, and more than was looked at.
        times = share / fullest.sequences
        counts = (fullest.tokens, fullest.attended, fullest.responses)
        return cls(share, *(round(times * count) for count in counts))

    @classmethod
    def _of(cls, recipe: Recipe, lengths: Lengths, part: Sequence[int]) -> Pass:
        responses = sum(lengths.responses[i] for i in part)
        if recipe.train.gradient_checkpointing:  # every row runs its own prompt, and all are padded
            tokens = len(part) * (max(lengths.prompts[i] for i in part) + max(lengths.responses[i] for i in part))
            return cls(len(part), tokens, tokens, responses)
        once = {i // recipe.group_size: lengths.prompts[i] for i in part}
        tokens = sum(once.values()) + responses
        return cls(len(part), tokens, tokens + sum(lengths.prompts[i] for i in part), responses)


def _split(recipe: Recipe, lengths: Lengths) -> list[list[int]]:
    prompts, responses = ([range(n) for n in some] for some in (lengths.prompts, lengths.responses))
    share, limit = max(1, len(prompts) // recipe.train.minibatches), Limit.of(recipe.train)
    prompts, responses = prompts[:share], responses[:share]
    try:
        if recipe.objective.coupling == "group":
            groups = [i // recipe.group_size for i in range(share)]
            return list(whole_groups(prompts, responses, groups, limit))
        return list(by_length(prompts, responses, limit))
    except UserError:  # where lengths are guessed, the first step is to refuse them
        return [[i] for i in range(share)]


def activations(recipe: Recipe, shape: Shape, run: Pass) -> int:
    """What the backward pass needs of every layer: counted from the tensors that autograd keeps (`policy.forward`)."""
    half = recipe.model.dtype == "bfloat16" or recipe.train.precision == "bf16"
    width = 2 if half else _FP32
    if recipe.train.gradient_checkpointing:
        # The model's own layers, one at a time: two norms keep four tensors in fp32, the feed-forward layer one more.
        layer = 4 * (_FP32 + width) * shape.hidden + (5 * shape.queries + 4 * shape.feed_forward) * width
        return run.tokens * (layer + shape.layers * shape.hidden * width)
    norms = 4 * shape.hidden * width  # inputs and outputs of two
    attention = 3 * shape.queries * width  # queries, and what attention says twice: padded, and joined
    if shape.query_norm:
        attention += (shape.queries + shape.keys) * width
    feed_forward = 3 * shape.feed_forward * width  # both halves, and their product
    return shape.layers * (run.tokens * (norms + attention + feed_forward) + run.attended * 2 * shape.keys * width)


def _flowing(recipe: Recipe, shape: Shape, run: Pass) -> int:
    """Gradients of one layer's activations, as the backward pass comes by; with checkpointing they are counted."""
    return 0 if recipe.train.gradient_checkpointing else activations(recipe, shape, run) // shape.layers


def _full(shape: Shape, run: Pass) -> int:
    return _LOGIT_COPIES * run.responses * shape.vocab * _FP32


def _chunked(recipe: Recipe, shape: Shape, run: Pass) -> int:
    """Buffers of the chunks, gradients of the hidden states, and the output matrix's gradient, ready beforehand."""
    logits = run.responses * shape.vocab * _FP32
    if recipe.train.chunk_tokens is not None:
        buffers = 2 * recipe.train.chunk_tokens * shape.vocab * _FP32
    else:
        buffers = _CHUNK_BYTES
    return min(2 * logits, buffers) + run.responses * shape.hidden * _FP32 + shape.vocab * shape.hidden * _FP32


def _sampling(recipe: Recipe, shape: Shape, lengths: Lengths) -> int:
    """The largest batch that is decoded at a time, its cache as long as the longest sequence."""
    rows = recipe.sequences_per_step if recipe.data == "rollouts" else 0
    if recipe.eval.every:
        rows = max(rows, min(MOST_ROWS, recipe.eval.prompts * recipe.eval.samples))
    rows = min(rows, recipe.rollout.batch or rows)
    tokens = max(lengths.prompts) + max(lengths.responses)
    cache = 2 * (shape.layers + 1) * shape.keys * _BYTES[recipe.model.dtype] * tokens
    return rows * (cache + _DRAWING * shape.vocab)


def _trained_width(recipe: Recipe) -> int:
    return _BYTES[recipe.model.dtype if recipe.model.lora is None else recipe.model.lora.dtype]


def _state(recipe: Recipe, shape: Shape) -> int:
    """Weights of the policy and of frozen ones, adapters, optimizer state and fp32 copies."""
    trained, width = shape.trainable, _trained_width(recipe)
    adapter = trained * width if recipe.model.lora is not None else 0
    optim = recipe.optim
    moments = 2 if isinstance(optim, AdamwSpec) else int(isinstance(optim, SgdSpec) and optim.momentum > 0)
    # A step's gradients exist as fp32 for its length, in place of the half-precision ones.
    masters = (_FP32 + _FP32 - width) * trained if optim.master_weights else 0
    optimizer = moments * trained * (_FP32 if optim.master_weights else width) + masters
    policies = shape.parameters * _BYTES[recipe.model.dtype] * (1 + _frozen_policies(recipe))
    return policies + adapter + optimizer


def _tried(recipe: Recipe, shape: Shape, loss: int) -> int:
    """Copies of what the optimizer steps, from before a step and after it, and what a pass takes for its logits."""
    if isinstance(recipe.step, FixedStep):
        return 0
    # The first copy is made beside the gradients, the second in their place.
    return 2 * shape.trainable * (_FP32 if recipe.optim.master_weights else _trained_width(recipe)) + loss


def _frozen_policies(recipe: Recipe) -> int:
    """Policies held beside the trained one; a verifier is taken to be as large as it."""
    reference = "reference_logprobs" in recipe.objective.needs or recipe.regularizer.kl_coefficient > 0
    verifiers = 0
    if recipe.data == "rollouts" and isinstance(recipe.advantage, DenseAdvantage):
        verifiers = 2 if isinstance(recipe.advantage, DenseDpoAdvantage) else 1
    return int(reference and recipe.model.lora is None) + verifiers


def _kept(recipe: Recipe, shape: Shape) -> int:
    """What policies said of sequences, which later passes over them compare with; and the rollouts that wait.

    Of a whole rollout before its first optimizer step, and of an optimizer step's part of one, where its KL or its loss
    is measured again.
    """
    lag, tokens = recipe.rollout.lag, recipe.sequences_per_step * recipe.rollout.max_new_tokens
    minibatches, needed = recipe.train.minibatches, "old_logits" in recipe.objective.needs
    again = recipe.train.inner_epochs * minibatches + lag > 1 or isinstance(recipe.step, LineSearchStep)
    # Of every rollout that waits, and of the one that is trained on.
    rollouts = 1 + lag if again and needed else 0
    region = isinstance(recipe.step, TrustRegionStep)
    measured = tokens // minibatches if region else 0
    if isinstance(recipe.step, TrustRegionStep) and recipe.step.sequences is not None:
        measured = min(measured, recipe.step.sequences * recipe.rollout.max_new_tokens)
    said, heads = rollouts * tokens + measured, rollouts + region
    queue = lag * tokens * _WAITING
    if recipe.train.loss == "chunked":
        return queue + (said + heads * shape.vocab) * shape.hidden * _FP32
    return queue + said * shape.vocab * _FP32
