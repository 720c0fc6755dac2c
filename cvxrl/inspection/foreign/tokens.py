"""Stored texts as tokens again: what a policy may have sampled, and how far that is known."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cvxrl.errors import Problem, UserError
from cvxrl.inspection.foreign.checkpoint import ForeignCheckpoint
from cvxrl.inspection.foreign.completions import OPTION, StoredCompletions, Text
from cvxrl.inspection.rollouts import FrozenRollouts, rollout_file
from cvxrl.policy.model import Policy
from cvxrl.runs.files import write_json

_SHOWN_DIGITS = 4


def retokenised(
    policy: Policy, model_hash: str, stored: StoredCompletions, checkpoint: ForeignCheckpoint | None, folder: Path
) -> tuple[FrozenRollouts, Path, list[str]]:
    """The completions as rollouts, also written to a file, and what is known of their tokens.

    Prompts are encoded as TRL does: with the tokenizer's special tokens, a conversation by its chat template. Replies
    are encoded without, and one that is shorter than the longest allowed gets the end token that decoding dropped.

    Raises:
        UserError: a completion is no single reply, the tokenizer has no chat template, or a sequence is too long.
    """
    settings = {} if checkpoint is None else checkpoint.settings
    texts = [_reply(text, stored) for group in stored.completions for text in group]
    encoded = policy.encode(texts)
    limit = settings.get("max_completion_length")
    responses = [ids if ids and limit is not None and len(ids) >= limit else [*ids, _end(policy)] for ids in encoded]
    prompts = _prompts(policy, stored, settings.get("chat_template_kwargs") or {})
    _require_room(policy, stored, prompts, responses)
    rewards = _scores(stored)
    mean = sum(map(sum, rewards)) / len(responses)
    frozen = FrozenRollouts(
        key={
            "policy": model_hash,
            "completions": hashlib.sha256(stored.file.read_bytes()).hexdigest(),
            "size": [len(prompts), stored.samples],
        },
        prompts=[ids for ids in prompts for _ in range(stored.samples)],
        responses=responses,
        logprobs=None,
        ids=[f"{stored.file.stem}-{p}" for p in range(len(prompts)) for _ in range(stored.samples)],
        rewards=rewards,
        metrics={"reward/mean": mean},
        advantages=stored.advantages,
    )
    file = rollout_file(folder, frozen.key)
    write_json(file, frozen.model_dump())
    return frozen, file, list(_describe(policy, texts, encoded, responses, limit, stored, checkpoint))


def _reply(text: Text, stored: StoredCompletions) -> str:
    if isinstance(text, str):
        return text
    if isinstance(text, list) and len(text) == 1 and isinstance(text[0].get("content"), str):
        return str(text[0]["content"])
    what = "holds completions of several messages, such as calls of tools, which cannot be told into sampled tokens"
    raise UserError(Problem(what, OPTION, str(stored.file), "sample anew: --recipe RECIPE --fresh"))


def _end(policy: Policy) -> int:
    own = policy.tokenizer.eos_token_id
    return int(own) if own is not None else policy.end_ids[0]


def _prompts(policy: Policy, stored: StoredCompletions, options: dict[str, Any]) -> list[list[int]]:
    if all(isinstance(prompt, str) for prompt in stored.prompts):
        return [list(ids) for ids in policy.tokenizer(list(stored.prompts))["input_ids"]]
    if not getattr(policy.tokenizer, "chat_template", None):
        what = "holds conversations, and the policy's tokenizer has no chat template"
        raise UserError(Problem(what, OPTION, str(stored.file), "restore chat_template.jinja of the checkpoint"))
    try:
        rendered = [
            str(policy.tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True, **options))
            for p in stored.prompts
        ]
    except Exception as error:  # templates are programs; see `rollout.prompts`
        what = f"holds conversations that the tokenizer's chat template refuses: {error}"
        raise UserError(Problem(what, OPTION, str(stored.file), "sample anew: --recipe RECIPE --fresh")) from error
    return policy.encode(rendered)


def _require_room(
    policy: Policy, stored: StoredCompletions, prompts: list[list[int]], responses: list[list[int]]
) -> None:
    longest = max(len(prompts[i // stored.samples]) + len(ids) for i, ids in enumerate(responses))
    if longest > policy.context or not all(prompts):
        what = "an empty prompt" if not all(prompts) else f"a sequence of {longest} tokens, above {policy.context}"
        raise UserError(Problem(f"holds {what} as this policy reads it", OPTION, str(stored.file), "name its own file"))


def _scores(stored: StoredCompletions) -> list[list[float]]:
    """Rewards without gaps: one that is missing counts as the mean of its group, which gives it no advantage."""
    if stored.rewards is None:
        assert stored.advantages is not None
        return stored.advantages
    filled = []
    for group in stored.rewards:
        known = [reward for reward in group if not math.isnan(reward)]
        mean = sum(known) / len(known) if known else 0.0
        filled.append([mean if math.isnan(reward) else reward for reward in group])
    return filled


def _describe(
    policy: Policy,
    texts: list[str],
    encoded: list[list[int]],
    responses: list[list[int]],
    limit: int | None,
    stored: StoredCompletions,
    checkpoint: ForeignCheckpoint | None,
) -> Iterator[str]:
    decoded = policy.decode(encoded)
    differ = sum(a != b for a, b in zip(texts, decoded, strict=True))
    ended = sum(len(r) > len(ids) for r, ids in zip(responses, encoded, strict=True))
    yield (
        f"tokens are the texts', encoded again: {differ} of {len(texts)} texts do not come back as they were "
        "(round-trip mismatches); whether the others are the sampled tokens is not known"
        f"{_by_length(responses, stored, checkpoint)}"
    )
    cut = (
        f"{len(texts) - ended} of {limit} tokens or more count as cut off"
        if limit
        else "the longest allowed is not known"
    )
    yield f"end tokens are not stored: {ended} completions got one, {cut}"


def _by_length(responses: list[list[int]], stored: StoredCompletions, checkpoint: ForeignCheckpoint | None) -> str:
    """Whether the mean length is the logged one, where that is of these very completions."""
    if checkpoint is None or stored.step is None or stored.of_evaluation or stored.dropped:
        return ""
    logged, before = (
        checkpoint.logged(stored.step, "completions/mean_length"),
        checkpoint.logged(stored.step - 1, "loss"),
    )
    if logged is None or (before is None and stored.step > 1):  # a mean over several steps
        return ""
    mean = sum(map(len, responses)) / len(responses)
    found = f"; their mean length is {mean:.{_SHOWN_DIGITS}g}"
    if abs(mean - logged) < 0.5 / len(responses):
        return f"{found}, as the log's"
    return f"{found} and the log's {logged:.{_SHOWN_DIGITS}g}, so that some were others, or decoding dropped them"
