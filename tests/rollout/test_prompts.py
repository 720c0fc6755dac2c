"""What stands around a prompt and a reply: the tokenizer's own beginning, and the end that the chat template writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from tiny_models import save_family
from tokenizers.processors import TemplateProcessing

from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.policy.load import load_policy
from cvxrl.policy.model import Policy
from cvxrl.recipe.model import ModelSpec
from cvxrl.recipe.task import TaskSpec
from cvxrl.rollout.prompts import _lost, encode_examples, end_of_reply
from cvxrl.tasks import Example

CPU = torch.device("cpu")
BASE = "package:cvxrl/assets/base"
TURNS = "{% for m in messages %}{{ m.role[0] + ':' + m.content + '<eot>' }}\n{% endfor %}"
ASKING = "{% if add_generation_prompt %}a:{% endif %}"
ENDS = {
    TURNS + ASKING: "<eot>",
    "{% for m in messages %}{{ m.content + ' ' + eos_token }}{% endfor %}": "<eos>",
    TURNS.replace("<eot>", "") + ASKING: "<eos>",
    "{% for m in messages %}{{ m.content }}{% endfor %}": "<eos>",
    "{{ 'Q:' + messages[0].content }}": "<eos>",
    "{% if messages|length > 1 %}{{ raise_exception('one question') }}{% endif %}Q:{{ messages[0].content }}": "<eos>",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose tokenizer begins and ends texts, and has a chat template with a token that ends a turn."""
    from transformers import AutoTokenizer

    folder = save_family("llama", tmp_path_factory.mktemp("policy"), max_position_embeddings=256)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"bos_token": "<bos>"})
    tokenizer.add_special_tokens({"additional_special_tokens": ["<eot>"]})
    tokenizer.add_tokens(["<call>"])
    ends = [(t, tokenizer.convert_tokens_to_ids(t)) for t in ("<bos>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", pair="<bos> $A $B", special_tokens=ends
    )
    tokenizer.chat_template = TURNS + ASKING
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return load_policy(ModelSpec(path=str(folder)), CPU)


def token(policy: Policy, text: str) -> int:
    return int(policy.tokenizer.convert_tokens_to_ids(text))


def task(**values: Any) -> TaskSpec:
    return TaskSpec.model_validate({"source": {"kind": "arithmetic"}, **values})


def encoded(policy: Policy, prompt: str, **values: Any) -> list[int]:
    return encode_examples(task(**values), policy, [Example("a", prompt, "3", {})], 4)[0]


@pytest.mark.parametrize(("template", "text"), [("none", "1+2=?"), ("question-answer", "Question: 1+2=?\nAnswer:")])
def test_prompts_begin_as_the_tokenizer_begins_a_text(template: str, text: str, policy: Policy) -> None:
    bare, begin = policy.encode([text])[0], token(policy, "<bos>")
    assert encoded(policy, "1+2=?", template=template) == [begin, *bare]
    assert encoded(policy, "1+2=?", template=template, special_tokens=False) == bare
    if template == "none":
        assert encoded(policy, "<bos>1+2=?") == [begin, *bare]  # not twice


def test_a_chat_template_writes_its_own_beginning(policy: Policy) -> None:
    assert encoded(policy, "1+2=?", template="chat") == policy.encode(["u:1+2=?<eot>\na:"])[0]


def test_a_tokenizer_that_adds_nothing_is_not_added_to() -> None:
    plain = load_policy(ModelSpec(path=BASE), CPU)
    assert encoded(plain, "1+2=") == plain.encode(["1+2="])[0]


@pytest.mark.parametrize("template", ENDS)
def test_a_reply_ends_as_the_chat_template_ends_it(template: str, policy: Policy, monkeypatch: Any) -> None:
    monkeypatch.setattr(policy.tokenizer, "chat_template", template)
    assert end_of_reply(task(template="chat"), policy)[-1] == token(policy, ENDS[template])
    assert end_of_reply(task(template="none"), policy) == [token(policy, "<eos>")]


def test_the_fixed_chat_ends_as_it_says_where_the_token_exists(policy: Policy, monkeypatch: Any) -> None:
    assert end_of_reply(task(template="qwen-math"), policy) == [token(policy, "<eos>")]
    qwen = load_policy(ModelSpec(path=BASE), CPU)
    qwen.tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    assert end_of_reply(task(template="qwen-math"), qwen) == [token(qwen, "<|im_end|>")]


@pytest.mark.parametrize("recipe", ["base_sft", "pref_dpo"])
def test_demonstrations_and_pairs_end_as_the_chat_template_ends_them(recipe: str, folder: Path) -> None:
    trainer = built(recipe, folder)
    responses = trainer.collector.collect(1).sequences.responses
    assert {ids[-1] for ids in responses} == {token(trainer.policy, "<eot>")}
    assert token(trainer.policy, "<eos>") not in {i for ids in responses for i in ids}


def test_sampling_stops_where_the_turn_ends(folder: Path) -> None:
    trainer = built("math_grpo", folder)
    turn = token(trainer.policy, "<eot>")
    assert turn not in trainer.policy.end_ids
    responses = trainer.collector.collect(1).sequences.responses
    ended = [ids for ids in responses if turn in ids]
    assert ended and all(ids.index(turn) == len(ids) - 1 for ids in ended)
    assert trainer.held_out is not None and trainer.held_out.evaluator.sampling.stop_ids == (turn,)
    assert not any("<eot>" in s.completion for s in trainer.held_out.evaluate(0).samples)


CANNOT = [
    ("Add 7 to 9, ok? \U0001f680", "'A' 'd' ' ' 't' 'o'"),
    ("1+\n2=", r"'\n'"),
]


@pytest.mark.parametrize(("prompt", "shown"), CANNOT)
def test_a_prompt_that_the_tokenizer_cannot_write_is_refused_with_its_characters(prompt: str, shown: str) -> None:
    plain = load_policy(ModelSpec(path=BASE), CPU)
    with pytest.raises(UserError, match=r"`a`: (.|\n)*unknown_characters") as error:
        encoded(plain, prompt)
    assert shown in str(error.value)
    assert encoded(plain, prompt, unknown_characters="allow") == plain.encode([prompt])[0]


@pytest.mark.parametrize("kind", ["byte-level", "words", "no unknown token"])
def test_only_what_is_lost_counts_as_unknown(kind: str, policy: Policy) -> None:
    """Bytes say everything; words leave out white space; without an unknown token characters vanish."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if kind == "byte-level":
        vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        core = Tokenizer(models.BPE(vocabulary, []))
        core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        lost = {"7 plus \U0001f680\n\u00e9": ""}
    elif kind == "words":
        core = Tokenizer(models.WordLevel({"[UNK]": 0, "seven": 1, "plus": 2}, unk_token="[UNK]"))
        core.pre_tokenizer = pre_tokenizers.Whitespace()
        lost = {"seven  plus\nseven": "", "seven minus": "minus"}
    else:
        core = Tokenizer(models.BPE({c: i for i, c in enumerate("0123+ ")}, []))
        lost = {"1+2": "", "1x2": "x", "1\u200d+2": ""}
    other = Policy(policy.model, PreTrainedTokenizerFast(tokenizer_object=core))
    assert dict(zip(lost, _lost(other, list(lost)), strict=True)) == {
        text: "".join(dict.fromkeys(gone)) for text, gone in lost.items()
    }


@pytest.mark.parametrize("field", ["prompt", "demonstration"])
def test_a_row_with_such_characters_is_named_before_training(field: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}+1=", "answer": "1", "demonstration": "1"} for i in range(5)]
    rows[3][field] = "so?"
    data = tmp_path / "rows.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    source = f"{{kind: dataset, path: {data}, demonstration_field: demonstration, held_out: 0}}"
    with pytest.raises(UserError, match=r"of a (prompt|reply).*'o'"):
        Trainer.build(tiny("base_sft", f"task.source={source}", "eval.every=0", "rollout.prompts=2"))


def built(recipe: str, folder: Path) -> Trainer:
    more = ("task.template=chat", "rollout.samples=8", "eval.prompts=8", "model.scratch=null")
    return Trainer.build(tiny(recipe, f"model.path={folder}", *more))
