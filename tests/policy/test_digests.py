"""Digests of weights and tokenizer."""

from __future__ import annotations

from pathlib import Path

import torch
from helpers import ROOT

from cvxrl.policy.identity import hash_tokenizer, hash_weights
from cvxrl.policy.load import load_policy
from cvxrl.recipe.model import ModelSpec

BASE = ROOT / "cvxrl" / "assets" / "base"


def test_every_part_of_the_weights_counts() -> None:
    def tiny() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))

    model, digests = tiny(), {hash_weights(tiny())}
    assert hash_weights(model) in digests
    with torch.no_grad():
        model[0].weight[0, 0] += 1e-6
    digests.add(hash_weights(model))
    model[1].running_mean[0] = 1.0
    digests.add(hash_weights(model))
    digests.add(hash_weights(model.double()))
    model[0].weight = torch.nn.Parameter(model[0].weight.reshape(2, 3))
    digests.add(hash_weights(model))
    assert len(digests) == 5


def test_a_policy_that_was_saved_has_the_same_digests(tmp_path: Path) -> None:
    policy = load_policy(ModelSpec(path=str(BASE)), torch.device("cpu"))
    policy.save(tmp_path / "copy")
    copy = load_policy(ModelSpec(path=str(tmp_path / "copy")), torch.device("cpu"))
    assert hash_weights(copy.model) == hash_weights(policy.model)
    assert hash_tokenizer(copy.tokenizer) == hash_tokenizer(policy.tokenizer)
    copy.tokenizer.chat_template = "{{ messages }}"
    assert hash_tokenizer(copy.tokenizer) != hash_tokenizer(policy.tokenizer)
