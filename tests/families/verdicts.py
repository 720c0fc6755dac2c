"""What the package makes of a tiny random model of a family: five questions, each answered by its own functions.

An answer is `works`, `slow path`, or `refused` with the message. A wrong number is none: it ends the script.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_models import save_family
from torch import Tensor

from cvxrl.errors import UserError
from cvxrl.objectives.linear import head_of, linear_statistics
from cvxrl.objectives.statistics import action_log_probs
from cvxrl.policy.agreement import log_prob_tolerance
from cvxrl.policy.identity import hash_weights
from cvxrl.policy.load import load_policy
from cvxrl.policy.model import Policy
from cvxrl.policy.probe import undisturbed
from cvxrl.policy.rows import own_outputs
from cvxrl.policy.ways import SLOW
from cvxrl.recipe.model import ModelSpec
from cvxrl.rollout.choice import choose
from cvxrl.rollout.generator import Sampling
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.rollout.randomness import completion_keys

WORKS, REFUSED = "works", "refused"
CPU = torch.device("cpu")
PROMPTS = [[5, 9, 14, 3, 7], [8, 6], [5, 9, 14, 3, 7], [21, 4, 30]]
RESPONSES = [[3, 4, 5, 6, 7, 8], [9, 3], [12], [4, 4, 17]]
# Gradients add the roundings of all tokens.
_GRADIENT = 20.0
QUESTIONS = ("sampling", "loss and gradient", "loss in chunks", "resume", "save and reload", "LoRA merge")


class WrongError(AssertionError):
    """A number that is neither right nor refused."""


@dataclass(frozen=True)
class Answer:
    """`works`, `slow path` or `refused`, and the message of a refusal."""

    kind: str
    message: str = ""


def answers(kind: str, folder: Path, **settings: object) -> dict[str, Answer]:
    """An answer to every question.

    Args:
        kind: the family, as configurations call it.
        folder: empty; models are written there.
        settings: of the configuration.

    Raises:
        WrongError: a number is wrong.
    """
    save_family(kind, folder / "model", **settings)
    spec = ModelSpec(path=str(folder / "model"))
    try:
        policy = load_policy(spec, CPU)
    except UserError as error:
        return dict.fromkeys(QUESTIONS, Answer(REFUSED, error.problems[0].message))
    asked: dict[str, Callable[[], str]] = {
        "sampling": lambda: sampling(policy),
        "loss and gradient": lambda: gradient(policy),
        "loss in chunks": lambda: chunks(policy),
        "resume": lambda: resume(policy, folder / "resume"),
        "save and reload": lambda: reload(policy, folder / "saved"),
        "LoRA merge": lambda: merge(spec, folder / "merged"),
    }
    return {question: _asked(asked[question]) for question in QUESTIONS}


def _asked(question: Callable[[], str]) -> Answer:
    try:
        return Answer(question())
    except UserError as error:
        return Answer(REFUSED, error.problems[0].message)


def sampling(policy: Policy) -> str:
    """Sampled log-probabilities against a plain forward pass on the unpadded sequence."""
    keys = completion_keys(0, "sampling", prompts=range(len(PROMPTS)), samples=2)
    episodes = LocalGenerator(policy).generate(PROMPTS, keys, Sampling(12, 1.0))
    theirs = own_log_probs(policy, [e.prompt_ids for e in episodes], [e.response_ids for e in episodes])
    mine = torch.cat([e.logprobs for e in episodes])
    _require(mine, theirs, log_prob_tolerance(policy.model, float(theirs.abs().max())), "sampled log-probabilities")
    return _pace(choose(policy, "auto").name)


def gradient(policy: Policy) -> str:
    """Mean loss and its gradient by the way that training takes, against full logits of unpadded sequences."""
    outputs = policy.response_outputs(PROMPTS, RESPONSES)
    actions = torch.tensor([i for r in RESPONSES for i in r])
    mine = action_log_probs(outputs.logits_NV.float(), actions)
    _same_loss_and_gradient(policy, mine)
    return _pace(policy.ways.describe())


def chunks(policy: Policy) -> str:
    """The same from hidden states and the output matrix, a few tokens at a time."""
    head = head_of(policy.model)
    actions = torch.tensor([i for r in RESPONSES for i in r])
    hidden = policy.response_hidden(PROMPTS, RESPONSES)
    _same_loss_and_gradient(policy, linear_statistics(hidden, head, actions, chunk_tokens=5).logprobs_N)
    return WORKS if policy.ways.padded else SLOW


def resume(policy: Policy, folder: Path) -> str:
    """What a checkpoint holds, loaded into a policy that has moved: bit for bit."""
    folder.mkdir()
    before = hash_weights(policy.model)
    policy.save_trained(folder)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.5).add_(0.1)
    policy.load_trained(folder)
    return _same_weights(policy, before)


def reload(policy: Policy, folder: Path) -> str:
    """The final policy, loaded as any other: bit for bit."""
    folder.mkdir()
    policy.save(folder)
    return _same_weights(load_policy(ModelSpec(path=str(folder)), CPU), hash_weights(policy.model))


def merge(spec: ModelSpec, folder: Path) -> str:
    """An adapter that has moved, merged into the saved policy: the same logits."""
    folder.mkdir()
    policy = load_policy(
        ModelSpec.model_validate({"path": spec.path, "lora": {"rank": 4, "targets": "all-linear"}}), CPU
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.trained:
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    policy.save(folder)
    merged = load_policy(ModelSpec(path=str(folder)), CPU)
    theirs = own_log_probs(policy, PROMPTS, RESPONSES)
    _require(own_log_probs(merged, PROMPTS, RESPONSES), theirs, 1e-4, "log-probabilities of the merged policy")
    return WORKS


def own_log_probs(policy: Policy, prompts: list[list[int]], responses: list[list[int]]) -> Tensor:
    """Log-probabilities of all response tokens by the model's own forward pass, one unpadded sequence at a time."""
    with undisturbed(policy.model):
        return torch.cat([_own(policy, p, r) for p, r in zip(prompts, responses, strict=True)])


def _own(policy: Policy, prompt: list[int], response: list[int]) -> Tensor:
    logits = own_outputs(policy.model, torch.tensor([prompt + response[:-1]])).logits[0, len(prompt) - 1 :]
    return action_log_probs(logits.float(), torch.tensor(response))


def _same_loss_and_gradient(policy: Policy, mine: Tensor) -> None:
    found = _gradient(policy, mine)
    theirs = torch.cat([_own(policy, p, r) for p, r in zip(PROMPTS, RESPONSES, strict=True)])
    limit = log_prob_tolerance(policy.model, float(theirs.detach().abs().max()))
    _require(mine.detach(), theirs.detach(), limit, "log-probabilities")
    expected = _gradient(policy, theirs)
    apart = float((found - expected).norm() / expected.norm())
    if not apart <= _GRADIENT * limit:
        raise WrongError(f"gradient off by {apart:.1e} of its norm")


def _gradient(policy: Policy, logprobs: Tensor) -> Tensor:
    policy.model.zero_grad()
    (-logprobs.mean()).backward()
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in policy.model.parameters()])


def _require(mine: Tensor, theirs: Tensor, limit: float, what: str) -> None:
    apart = float((mine - theirs).abs().max())
    if not apart <= limit:
        raise WrongError(f"{what} off by {apart:.1e}, rounding explains {limit:.1e}")


def _same_weights(policy: Policy, digest: str) -> str:
    if hash_weights(policy.model) != digest:
        raise WrongError("weights come back other than they were saved")
    return WORKS


def _pace(words: str) -> str:
    return SLOW if words.startswith(SLOW) else WORKS
