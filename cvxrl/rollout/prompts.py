"""Examples as token ids: rendered by the task's template, encoded, checked against the policy's context, padded."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from cvxrl.errors import Problem, UserError
from cvxrl.policy.model import Policy
from cvxrl.recipe.reward import CallableReward
from cvxrl.recipe.task import TaskSpec
from cvxrl.rollout.generator import Episode
from cvxrl.tasks import Example
from cvxrl.tasks.extraction import looks_for

_SHOWN = 5
_REPLY = "This is the reply."
_QWEN_MATH_SYSTEM = r"Please reason step by step, and put your final answer within \boxed{}."


def render(prompt: str, spec: TaskSpec, tokenizer: Any) -> str:
    """Return the text that the policy continues.

    Args:
        prompt: the bare problem of an Example.
        spec: names the template, the system message and the instruction.
        tokenizer: the policy's transformers tokenizer; only the template `chat` uses it.

    Raises:
        UserError: the template is `chat` and the tokenizer has none, or its template refuses the messages.
    """
    text = f"{prompt}\n{spec.instruction}" if spec.instruction else prompt
    match spec.template:
        case "none":
            return text
        case "question-answer":
            return f"Question: {text}\nAnswer:"
        case "qwen-math":
            system = _QWEN_MATH_SYSTEM if spec.system is None else spec.system
            turns = (("system", system), ("user", text))
            return "".join(f"<|im_start|>{who}\n{said}<|im_end|>\n" for who, said in turns) + "<|im_start|>assistant\n"
        case "chat":
            return _chat(text, spec.system, tokenizer)


def _chat(text: str, system: str | None, tokenizer: Any) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            Problem(
                "the policy's tokenizer has no chat template",
                key="task.template",
                remedy="set task.template to none or question-answer, or use an instruction-tuned policy",
            )
        )
    try:
        rendered = tokenizer.apply_chat_template(_turns(system, text), tokenize=False, add_generation_prompt=True)
    except Exception as error:
        # Templates are programs; several refuse system messages by raising an error of the template engine.
        message = f"the tokenizer's chat template refuses the messages: {error}"
        remedy = "remove task.system, or choose another template"
        raise UserError(Problem(message, key="task.template", remedy=remedy)) from error
    return str(rendered)


def _turns(system: str | None, *said: str) -> list[dict[str, str]]:
    """Messages of a conversation that the user begins."""
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def end_of_reply(spec: TaskSpec, policy: Policy) -> list[int]:
    """Token ids behind a reply: what the template writes there, as far as the token that ends the turn.

    That is the end token where the template writes nothing behind a reply, or no token of its own.
    """
    tokenizer = policy.tokenizer
    written = _after_reply(spec, tokenizer)
    ids = policy.encode([written])[0] if written else []
    special = {
        *policy.end_ids,
        *getattr(tokenizer, "all_special_ids", ()),
        *getattr(tokenizer, "added_tokens_decoder", ()),
    }
    # Spelt out there, for a special token may also stand for what the tokenizer does not know.
    ends = (i for i, id_ in enumerate(ids) if id_ in special and tokenizer.convert_ids_to_tokens(id_) in written)
    stop = next(ends, None)
    return [int(tokenizer.eos_token_id)] if stop is None else ids[: stop + 1]


def _after_reply(spec: TaskSpec, tokenizer: Any) -> str:
    """Text that the template writes behind an assistant's message."""
    if spec.template == "qwen-math":
        return "<|im_end|>\n"
    if spec.template != "chat":
        return ""
    turns = _turns(spec.system, "Question?", _REPLY)
    try:
        written = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except Exception:  # a template that has only questions in mind; see `_chat`
        return ""
    return written.rpartition(_REPLY)[2] if _REPLY in written else ""


def encode_examples(
    task: TaskSpec, policy: Policy, examples: Sequence[Example], response_tokens: int | Sequence[int]
) -> list[list[int]]:
    """Render and encode prompts.

    Args:
        task: names the template.
        policy: its tokenizer encodes, its context limits.
        examples: one prompt each.
        response_tokens: tokens that must fit behind every prompt, or one number for each.

    Raises:
        UserError: a prompt is empty, or has characters that the tokenizer cannot write; prompt and response would not
            fit the model's context, or would be of lengths between which the model gives tokens other probabilities
            (`policy.checked`).
    """
    texts = [render(e.prompt, task, policy.tokenizer) for e in examples]
    require_writable(task, policy, "prompt", [(e.id, text) for e, text in zip(examples, texts, strict=True)])
    prompts = policy.encode(texts)
    if task.special_tokens and task.template in ("none", "question-answer"):
        prompts = [[*opening, *ids] for opening, ids in zip(policy.openings(texts, prompts), prompts, strict=True)]
    room = [response_tokens] * len(prompts) if isinstance(response_tokens, int) else response_tokens
    for example, ids, needed in zip(examples, prompts, room, strict=True):
        if not ids:
            raise UserError(Problem(f"the prompt of example `{example.id}` is empty", "task.source"))
        if len(ids) + needed > policy.context:
            raise UserError(
                Problem(
                    f"example `{example.id}` has {len(ids)} prompt tokens; with {needed} new tokens that "
                    f"exceeds the model's context of {policy.context}",
                    "rollout.max_new_tokens",
                    remedy="lower rollout.max_new_tokens, shorten the prompts, or take a model with a longer context",
                )
            )
    if prompts:
        policy.checked.cover(*read_lengths(prompts, room))
    return prompts


def require_writable(task: TaskSpec, policy: Policy, what: str, texts: Sequence[tuple[str, str]]) -> None:
    """Every character must be said by some token other than the one for what the tokenizer does not know.

    Args:
        task: its `unknown_characters` may let them pass.
        policy: its tokenizer is asked.
        what: the texts are, e.g. `prompt`.
        texts: id of an example, and a text of it.

    Raises:
        UserError: names the first examples and their characters.
    """
    if task.unknown_characters == "allow":
        return
    found = zip(texts, _lost(policy, [text for _, text in texts]), strict=True)
    bad = {name: lost for (name, _), lost in found if lost}
    if bad:
        shown = "; ".join(f"`{name}`: {' '.join(map(repr, lost[:_SHOWN]))}" for name, lost in [*bad.items()][:_SHOWN])
        more = f" ({len(bad)} of {len(texts)} examples)" if len(texts) > 1 else ""
        message = f"the policy's tokenizer has no token for characters of a {what}: {shown}{more}"
        remedy = "change the texts, take another policy, or set task.unknown_characters to allow"
        raise UserError(Problem(message, "task.source", remedy=remedy))


def _lost(policy: Policy, texts: Sequence[str]) -> Iterator[str]:
    """Characters of each text that vanish or become the token for what is not known, each once."""
    tokenizer, known = policy.tokenizer, set[str]()
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    name = getattr(model, "unk_token", None) or getattr(tokenizer, "unk_token", None)
    unknown = tokenizer.convert_tokens_to_ids(name) if name else None
    for text, ids in zip(texts, policy.encode(texts), strict=True):
        if unknown not in ids and known.issuperset(text):
            yield ""
        elif unknown is not None and getattr(tokenizer, "is_fast", False):
            spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            said, unsaid = set[int](), set[int]()
            for id_, (start, end) in zip(ids, spans, strict=True):
                (unsaid if id_ == unknown else said).update(range(start, end))
            known.update(text[i] for i in said - unsaid)
            gone = (i for i, c in enumerate(text) if i in unsaid or (i not in said and not _is_blank(c)))
            yield "".join(dict.fromkeys(text[i] for i in gone))
        else:
            alone = dict(zip(dict.fromkeys(text), policy.encode([*dict.fromkeys(text)]), strict=True))
            vanished = (c for c, one in alone.items() if unknown in one or not (one or _is_blank(c)))
            yield "".join(vanished)
            known.update(c for c, one in alone.items() if one and unknown not in one)


def _is_blank(character: str) -> bool:
    """Whether a tokenizer may leave it out: white space, and marks without a shape of their own."""
    return character.isspace() or unicodedata.category(character) in ("Cc", "Cf", "Mn")


def read_lengths(prompts: Sequence[list[int]], response_tokens: int | Sequence[int]) -> tuple[int, int]:
    """Tokens of the shortest prompt, and of the longest sequence but for its last token, which predicts nothing."""
    room = [response_tokens] * len(prompts) if isinstance(response_tokens, int) else response_tokens
    return min(map(len, prompts)), max(len(ids) + needed - 1 for ids, needed in zip(prompts, room, strict=True))


def without_end(episodes: Sequence[Episode]) -> list[list[int]]:
    """Every response without the token that ends it."""
    return [e.response_ids if e.truncated else e.response_ids[:-1] for e in episodes]


def padded_prompts(prompts: Sequence[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids padded on the left and their mask, [P, T] each."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, mask


def row_prompts(counts: Sequence[int], device: torch.device) -> Tensor:
    """Index of the prompt of every row, [B]: ``counts[p]`` times p, for each p."""
    indices = torch.arange(len(counts), device=device)
    return indices.repeat_interleave(torch.tensor(counts, device=device))


def reply_texts(policy: Policy, task: TaskSpec, responses: Sequence[Sequence[int]]) -> list[str]:
    """Text of each response.

    Tokenizers drop their special tokens from text, and `<answer>` can be one of them. What the extraction looks for
    stays, and for a function of the user's every special token but those that begin, end and pad a sequence.
    """
    tokenizer = policy.tokenizer
    frame = {*policy.end_ids, policy.pad_id, tokenizer.bos_token_id}
    kept = {
        int(number)
        for number, text in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)
        if looks_for(task.extract, text) or (isinstance(task.reward, CallableReward) and number not in frame)
    }
    return policy.decode(responses, kept)
