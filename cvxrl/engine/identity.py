"""What a run was made from: data set, weights, tokenizer. A resumed run must be made from the same."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from cvxrl.errors import Problem, UserError
from cvxrl.policy.model import Policy
from cvxrl.runs.record import RunRecord
from cvxrl.tasks import Task

_SHOWN = 12  # hexadecimal digits of a digest that a message repeats


@dataclass(frozen=True)
class Identity:
    """Digests of what training starts from.

    Attributes:
        task: the examples.
        model: every parameter and buffer, before the first step.
        tokenizer: vocabulary, rules and chat template.
        revision: commit of a policy from the Hub, or None.
    """

    task: str
    model: str
    tokenizer: str
    revision: str | None


def identify(policy: Policy, task: Task) -> Identity:
    """Digests of a policy that has not been trained yet, and of its task."""
    revision = getattr(policy.model.config, "_commit_hash", None)
    return Identity(task.fingerprint, hash_weights(policy.model), _hash_tokenizer(policy.tokenizer), revision)


def require_same(record: RunRecord, now: Identity) -> None:
    """Refuse to resume on other data or another model.

    Raises:
        UserError: one problem for each part that changed.
    """
    revision = f"; its commit was {record.model_revision}, is now {now.revision}" if record.model_revision else ""
    parts = (
        ("the data set", "task.source", record.task_fingerprint, now.task, ""),
        ("the policy's initial weights", "model", record.model_hash, now.model, revision),
        ("the tokenizer", "model", record.tokenizer_hash, now.tokenizer, ""),
    )
    problems = [
        Problem(
            f"{what} changed since the run began: digest was {then[:_SHOWN]}, is now {found[:_SHOWN]}{more}",
            key,
            remedy="restore what the run began with, or start anew with --overwrite or another --out",
        )
        for what, key, then, found, more in parts
        if then is not None and then != found
    ]
    if problems:
        raise UserError(*problems)


def hash_weights(model: torch.nn.Module) -> str:
    """SHA-256 over name, type, shape and bytes of every parameter and buffer; matrices that are tied count once."""
    total = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        total.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def _hash_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    special = sorted((name, str(value)) for name, value in tokenizer.special_tokens_map.items())
    text = f"{rules}\n{special}\n{tokenizer.chat_template}"
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
