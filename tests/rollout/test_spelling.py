"""Tokens' texts join to the completion, letters of several tokens included."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cvxrl.rollout.spelling import token_texts


@pytest.fixture(scope="module")
def by_bytes() -> Any:
    """A token for every byte, two for the end and for padding, and `</answer>`, which is special too."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>", pad_token="<pad>")


def test_a_letter_of_several_tokens_is_told_by_its_last(by_bytes: Any) -> None:
    ids = by_bytes("aé 😀")["input_ids"]
    assert token_texts(by_bytes, ids) == ["a", "", "é", " ", "", "", "", "😀"]


def test_a_letter_that_is_never_finished_is_told_at_the_end(by_bytes: Any) -> None:
    ids = by_bytes("é")["input_ids"][:1]
    assert token_texts(by_bytes, ids) == ["\ufffd"] == [by_bytes.decode(ids)]


def test_the_end_is_told_by_its_name(by_bytes: Any) -> None:
    ids = [*by_bytes("ab")["input_ids"], by_bytes.eos_token_id]
    assert token_texts(by_bytes, ids) == ["a", "b", "<end>"]


def test_texts_join_to_the_completion(by_bytes: Any) -> None:
    text = "½ of 3+4,\nso ünderlined; 数学 </script>"
    ids = by_bytes(text)["input_ids"]
    assert "".join(token_texts(by_bytes, ids)) == text == by_bytes.decode(ids)
