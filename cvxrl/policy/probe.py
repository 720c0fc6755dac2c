"""What a model's own forward pass says of a few random tokens: the authority that every short way is compared with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cvxrl.errors import Problem, UserError
from cvxrl.policy.agreement import difference, logit_tolerance
from cvxrl.policy.rows import own_outputs, own_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Largest logit that the output layer is shown: a bound or factor cannot hide in small ones.
_REACH = 100.0
# Places of a long response that are looked at: its first and last, and some between.
_PLACES = 48


@dataclass(frozen=True)
class Vocabulary:
    """Tokens that probes are made of.

    Attributes:
        ordinary: ids that stand for text.
        special: ids of padding and of ends.
    """

    ordinary: Sequence[int]
    special: Sequence[int]


@dataclass(frozen=True)
class Probe:
    """Random sequences; the first and the last have the same prompt.

    Attributes:
        prompts: token ids.
        responses: token ids, none empty.
        places: which response tokens are looked at, as indices into all of them, sequence after sequence.
    """

    prompts: list[list[int]]
    responses: list[list[int]]
    places: Tensor

    @classmethod
    def random(cls, vocabulary: Vocabulary, prompts: Sequence[int], responses: Sequence[int]) -> Probe:
        """Sequences of these lengths; the same every time, and no other random numbers are touched.

        Responses of more than two tokens begin with a special one: a policy may sample those too, and some families
        take them for padding wherever they are.
        """
        generator = torch.Generator().manual_seed(0)

        def draw(length: int) -> list[int]:
            chosen = torch.randint(len(vocabulary.ordinary), (length,), generator=generator).tolist()
            return [vocabulary.ordinary[i] for i in chosen]

        drawn = [draw(n) for n in prompts]
        drawn[-1] = drawn[0]
        ends = torch.tensor(responses).cumsum(0).tolist()
        inside = [torch.arange(start, end)[_spread(end - start)] for start, end in zip([0, *ends], ends, strict=False)]
        said = [draw(n) for n in responses]
        for response, token in zip((r for r in said if len(r) > 2), cycle(vocabulary.special), strict=False):
            response[0] = token
        return cls(drawn, said, torch.cat(inside))


def _spread(length: int) -> Tensor:
    """Up to `_PLACES` indices below ``length``, both ends among them."""
    return torch.linspace(0, length - 1, min(length, _PLACES)).round().long()


def own_logits(model: PreTrainedModel, probe: Probe, head: bool) -> Tensor:
    """Logits of the own forward pass at the probe's places, one sequence at a time: [places, V].

    Args:
        model: undisturbed.
        probe: what it runs on.
        head: its output layer, applied to its last hidden states, is known to give its logits: those of other places
            need not be held, which in a long sequence are large.

    Raises:
        UserError: the pass fails.
    """
    device, found, start = next(model.parameters()).device, [], 0
    try:
        for prompt, response in zip(probe.prompts, probe.responses, strict=True):
            ids, end = torch.tensor([prompt + response[:-1]], device=device), start + len(response)
            here = probe.places[(probe.places >= start) & (probe.places < end)] - start + len(prompt) - 1
            if head:
                found.append(model.get_output_embeddings()(own_states(model, ids)[0, here.to(device)]))
            else:
                found.append(own_outputs(model, ids).logits[0, here.to(device)])
            start = end
    except Exception as error:  # the code of any family, with whatever it needs besides token ids
        raise refusal(model, f"its forward pass fails on token ids alone: {_first_line(error)}") from error
    return torch.cat(found).float()


def apart_behind_prompt(probe: Probe, theirs: Tensor) -> float:
    """Difference of the logits behind one prompt, in the first and in the last sequence."""
    last = int((probe.places < sum(map(len, probe.responses[:-1]))).sum())
    return difference(theirs[:1], theirs[last : last + 1])


def require_one_probability(model: PreTrainedModel, probe: Probe, theirs: Tensor) -> None:
    """Refuse a model whose logits behind one prompt differ with what comes after it.

    Raises:
        UserError: they do.
    """
    found = apart_behind_prompt(probe, theirs)
    if not found <= logit_tolerance(model):
        raise refusal(
            model,
            "the probability of a token changes with the tokens after it, or from pass to pass (logits by "
            f"{found:.1e} of the largest)",
        )


def refusal(model: PreTrainedModel, reason: str) -> UserError:
    """The model cannot be a policy."""
    message = f"this {type(model).__name__} cannot be trained or sampled: {reason}"
    remedy = "take a causal language model over text alone; some encoders decode with `is_decoder: true` in config.json"
    return UserError(Problem(message, "model", remedy=remedy))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def head_agrees(model: PreTrainedModel, ids: Sequence[int]) -> bool:
    """Whether logits are the output layer's, of the last hidden states, small or large.

    The output layer is shown its input scaled up, as training may scale it: what bounds or multiplies its output then
    shows, which on the small logits of a new model could be rounding.

    Args:
        model: undisturbed; it is left as it was.
        ids: tokens of a sequence.
    """
    layer: Any = model.get_output_embeddings()
    if layer is None:
        return False
    tokens, seen = torch.tensor([list(ids)], device=next(model.parameters()).device), []

    def enlarge(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        seen.append(arguments[0])
        return (_enlarged(layer, arguments[0]), *arguments[1:])

    hook = layer.register_forward_pre_hook(enlarge)
    try:
        logits = tried(lambda: own_outputs(model, tokens).logits)
    finally:
        hook.remove()
    if len(seen) != 1 or not logits.numel():
        return False
    states, mine = tried(lambda: own_states(model, tokens)), tried(lambda: layer(_enlarged(layer, seen[0])))
    limit = logit_tolerance(model)
    return difference(states, seen[0].float()) <= limit and difference(mine, logits) <= limit


def _enlarged(layer: Any, states: Tensor) -> Tensor:
    largest: Tensor = layer.forward(states).abs().max()  # not a call, which would come back here
    return states * (_REACH / largest.clamp(min=1e-6)).to(states.dtype)


def tried(way: Callable[[], Tensor]) -> Tensor:
    """What a way says in fp32, or nothing where it does not run: a family it was not made for may fail anywhere."""
    try:
        return way().float()
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return torch.empty(0)


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, no autocast; afterwards each module is in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    device = next(model.parameters()).device.type
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(device, enabled=False):
            yield
    finally:
        for module, training in modes.items():
            module.training = training
