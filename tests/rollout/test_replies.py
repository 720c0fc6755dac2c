"""The text that is graded: special tokens that the task looks for stay."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import TypeAdapter
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cvxrl.policy.model import Policy
from cvxrl.recipe.task import TaskSpec
from cvxrl.rollout.prompts import reply_texts
from cvxrl.tasks import Example, load_grader

WORDS = ["<s>", "</s>", "<pad>", "<answer>", "</answer>", "<|final|>", "so", "4"]


@pytest.fixture(scope="module")
def policy() -> Policy:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    special = {"additional_special_tokens": ["<answer>", "</answer>", "<|final|>"]}
    frame = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=made, **frame, **special)
    model: Any = SimpleNamespace(generation_config=None, config=SimpleNamespace())
    return Policy(model, tokenizer)


def spec(extract: dict[str, Any], reward: dict[str, Any] | None = None) -> TaskSpec:
    task = {"source": {"kind": "arithmetic"}, "extract": extract, "reward": reward or {"kind": "exact"}}
    return TypeAdapter(TaskSpec).validate_python(task)


REPLY = [WORDS.index(word) for word in ("so", "<|final|>", "<answer>", "4", "</answer>", "</s>", "<pad>")]


@pytest.mark.parametrize(
    ("extract", "text"),
    [
        ({"kind": "tag"}, "so <answer> 4 </answer>"),
        ({"kind": "tag", "tag": "result"}, "so 4"),
        ({"kind": "regex", "pattern": r"<\|final\|>\D*(\d+)"}, "so <|final|> 4"),
        ({"kind": "none"}, "so 4"),
        ({"kind": "last-integer"}, "so 4"),
    ],
)
def test_special_tokens_that_the_extraction_looks_for_stay(policy: Policy, extract: dict[str, Any], text: str) -> None:
    assert reply_texts(policy, spec(extract), [REPLY]) == [text]


def test_an_answer_between_special_tokens_is_found(policy: Policy) -> None:
    task = spec({"kind": "tag"})
    grade = load_grader(task).grade(reply_texts(policy, task, [REPLY]), [Example("0", "2+2?", "4")])[0]
    assert (grade.correct, grade.extracted) == (True, "4")


def test_a_function_sees_every_special_token_but_those_that_frame_a_sequence(policy: Policy) -> None:
    reward = {"kind": "callable", "function": "math:fsum"}
    assert reply_texts(policy, spec({"kind": "none"}, reward), [REPLY]) == ["so <|final|> <answer> 4 </answer>"]
