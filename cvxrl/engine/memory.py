"""Peak memory of a run on each of its ranks, before anything heavy is loaded (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from cvxrl.engine.passes import Lengths, Pass
from cvxrl.engine.placed import Placed, vllm_of
from cvxrl.engine.sizes import Shape
from cvxrl.evaluation.memory import MOST_ROWS
from cvxrl.recipe.advantage import DenseAdvantage, DenseDpoAdvantage
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.step import FixedStep, LineSearchStep, TrustRegionStep
from cvxrl.recipe.training import AdamwSpec, SgdSpec

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
# What a run of any size takes on the host once its task and its policy are loaded, beside the weights.
_START = 36 * 2**20


@dataclass(frozen=True)
class Footprint:
    """Bytes on one rank beyond what the interpreter and its libraries take.

    Attributes:
        start: what a run of any size takes once its task and its policy are loaded; on a GPU, of the host.
        weights: of the policy, with its adapter; a rank's share where they are sharded, as all of the next four.
        frozen: policies beside it: references and verifiers.
        optimizer: its state, and fp32 copies.
        gradients: of the trained weights; they live until the next step's first backward pass.
        tried: while a step is searched, copies of the trained weights and a pass without gradient.
        kept: rollout logits, or hidden states, kept for later passes, and rollouts that wait.
        activations: what one forward and backward pass keeps for its micro-batch.
        logits: likewise, or the chunks of them.
        gathered: of sharded weights, what a pass holds whole: the outermost parameters, two layers, their gradients.
        whole: of sharded weights, all of them while ranks sample, evaluate and read.
        cache: keys and values while sampling, in training or evaluation, and the drawing of tokens.
        second: the weights that sample beside the updates (`rollout.ahead`), whole.
        engine: what a vLLM in the same process takes for itself.
        micro_batches: whether there are several passes, so that gradients and a pass's activations coexist.
    """

    start: int
    weights: int
    frozen: int
    optimizer: int
    gradients: int
    tried: int
    kept: int
    activations: int
    logits: int
    gathered: int
    whole: int
    cache: int
    second: int
    engine: int
    micro_batches: bool

    @property
    def state(self) -> int:
        """What stays from step to step, or from the rollout to its last use."""
        return self.start + self.weights + self.frozen + self.optimizer + self.kept + self.second + self.engine

    @property
    def update(self) -> int:
        """What one forward and backward pass takes."""
        return self.activations + self.logits

    @property
    def peak(self) -> int:
        """Largest of the phases of a step, and the holes that sampling leaves.

        What a rollout's cache took is free while the policy is trained, but in blocks of sizes that a pass's tensors do
        not have: it is counted as if it were still there (docs/performance.md, measured).
        """
        update = self.update + self.gathered
        passing = update + self.gradients if self.micro_batches else max(update, self.gradients)
        if self.second:  # samples all the while
            return self.state + self.cache + self.whole + max(passing, self.tried)
        return self.state + self.cache + max(passing, self.tried, self.whole + self.gradients)


def footprint(recipe: Recipe, shape: Shape, placed: Placed | None = None, device: int | None = None) -> Footprint:
    """What a run will take on each rank.

    Args:
        recipe: the run's.
        shape: of its policy.
        placed: on how many ranks; one by default.
        device: bytes of a rank's device, of which a vLLM in the same process takes its share.
    """
    placed = placed or Placed.of(recipe)
    lengths = Lengths.of(recipe, placed)
    largest = Pass.of(recipe, lengths, placed)
    loss = _chunked(recipe, shape, largest) if recipe.train.loss == "chunked" else _full(shape, largest)
    width, share = _BYTES[recipe.model.dtype], placed.share
    whole = shape.parameters * width if placed.sharded else 0
    adapter = shape.trainable * _trained_width(recipe) if recipe.model.lora is not None else 0
    vllm = vllm_of(recipe)
    inside = vllm.memory if vllm is not None and vllm.mode == "colocated" else 0.0
    return Footprint(
        start=_START,
        weights=(shape.parameters * width + adapter) // share,
        frozen=shape.parameters * width * _frozen_policies(recipe) // share,
        optimizer=_optimizer(recipe, shape) // share,
        gradients=shape.trainable * _trained_width(recipe) // share,
        tried=_tried(recipe, shape, loss, share) + (whole if _searches(recipe) else 0),
        kept=_kept(recipe, shape, placed),
        activations=activations(recipe, shape, largest) + _flowing(recipe, shape, largest),
        logits=loss,
        gathered=_gathered(recipe, shape) if placed.sharded else 0,
        whole=whole,
        cache=0 if vllm is not None else _sampling(recipe, shape, lengths, placed),
        second=shape.trainable * _trained_width(recipe) if recipe.rollout.ahead else 0,
        engine=int(inside * (device or 0)),
        micro_batches=largest.sequences < placed.fullest,
    )


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


def _sampling(recipe: Recipe, shape: Shape, lengths: Lengths, placed: Placed) -> int:
    """The largest batch that is decoded at a time, its cache as long as the longest sequence."""
    rows = placed.sequences if recipe.data == "rollouts" else 0
    if recipe.eval.every:
        rows = max(rows, min(MOST_ROWS, -(-recipe.eval.prompts // placed.ranks) * recipe.eval.samples))
    rows = min(rows, recipe.rollout.batch or rows)
    tokens = max(lengths.prompts) + max(lengths.responses)
    cache = 2 * (shape.layers + 1) * shape.keys * _BYTES[recipe.model.dtype] * tokens
    return rows * (cache + _DRAWING * shape.vocab)


def _trained_width(recipe: Recipe) -> int:
    return _BYTES[recipe.model.dtype if recipe.model.lora is None else recipe.model.lora.dtype]


def _optimizer(recipe: Recipe, shape: Shape) -> int:
    """Moments, and fp32 copies."""
    trained, width, optim = shape.trainable, _trained_width(recipe), recipe.optim
    moments = 2 if isinstance(optim, AdamwSpec) else int(isinstance(optim, SgdSpec) and optim.momentum > 0)
    # A step's gradients exist as fp32 for its length, in place of the half-precision ones.
    masters = (_FP32 + _FP32 - width) * trained if optim.master_weights else 0
    return moments * trained * (_FP32 if optim.master_weights else width) + masters


def _gathered(recipe: Recipe, shape: Shape) -> int:
    """Weights, gradients and their sums over ranks in fp32: of what is around the layers, and of a layer; and the next.

    A layer is gathered while the one before it is computed.
    """
    layer, width = shape.trunk // shape.layers, _BYTES[recipe.model.dtype]
    around = shape.parameters - shape.trunk
    sums = width + _FP32 if recipe.model.lora is None else 0
    return (around + layer) * (width + sums) + layer * width


def _tried(recipe: Recipe, shape: Shape, loss: int, share: int) -> int:
    """Copies of what the optimizer steps, from before a step and after it, and what a pass takes for its logits."""
    if not _searches(recipe):
        return 0
    # The first copy is made beside the gradients, the second in their place.
    width = _FP32 if recipe.optim.master_weights else _trained_width(recipe)
    return 2 * shape.trainable * width // share + loss


def _searches(recipe: Recipe) -> bool:
    return not isinstance(recipe.step, FixedStep)


def _frozen_policies(recipe: Recipe) -> int:
    """Policies held beside the trained one; a verifier is taken to be as large as it."""
    reference = "reference_logprobs" in recipe.objective.needs or recipe.regularizer.kl_coefficient > 0
    verifiers = 0
    if recipe.data == "rollouts" and isinstance(recipe.advantage, DenseAdvantage):
        verifiers = 2 if isinstance(recipe.advantage, DenseDpoAdvantage) else 1
    return int(reference and recipe.model.lora is None) + verifiers


def _kept(recipe: Recipe, shape: Shape, placed: Placed) -> int:
    """What policies said of a rank's sequences, which later passes over them compare with; and its rollouts that wait.

    Of a whole rollout before its first optimizer step, and of an optimizer step's part of one, where its KL or its loss
    is measured again.
    """
    lag, limit = recipe.rollout.lag, recipe.rollout.max_new_tokens
    tokens, needed = placed.sequences * limit, "old_logits" in recipe.objective.needs
    again = recipe.train.inner_epochs * recipe.train.minibatches + lag > 1 or isinstance(recipe.step, LineSearchStep)
    # Of every rollout that waits, and of the one that is trained on.
    rollouts = 1 + lag if again and needed else 0
    region = isinstance(recipe.step, TrustRegionStep)
    measured = placed.fullest * limit if region else 0
    if isinstance(recipe.step, TrustRegionStep) and recipe.step.sequences is not None:
        measured = min(measured, recipe.step.sequences * limit)
    said, heads = rollouts * tokens + measured, rollouts + region
    queue = lag * tokens * _WAITING
    if recipe.train.loss == "chunked":
        return queue + (said + heads * shape.vocab) * shape.hidden * _BYTES[recipe.model.dtype]
    return queue + said * shape.vocab * _FP32
