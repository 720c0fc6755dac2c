"""Equal weights give equal bits, wherever in their file they lie."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from safetensors.torch import load_file, save_file

from cvxrl.policy.load import load_policy
from cvxrl.recipe.model import ModelSpec

SMALL = ROOT / "tests" / "fixtures" / "small"


def copied(folder: Path, header: int) -> Path:
    """The small policy with so much more text in front of its weights."""
    shutil.copytree(SMALL, folder)
    file = folder / "model.safetensors"
    save_file(load_file(file), file, metadata={"format": "pt", "text": "." * header})
    return folder


@pytest.mark.parametrize("header", [8, 24, 40])
def test_a_longer_header_changes_no_bit(tmp_path: Path, header: int) -> None:
    ids = torch.tensor([[3]])  # a product with one row is where alignment shows: the last reply to end is decoded so
    found = []
    for length in (0, header):
        folder = copied(tmp_path / str(length), length)
        model = load_policy(ModelSpec(path=str(folder)), torch.device("cpu")).model
        assert all(weight.data_ptr() % 64 == 0 for weight in model.parameters())
        model(ids).logits.logsumexp(-1).sum().backward()
        found.append([model(ids).logits, *(weight.grad for weight in model.parameters())])
    assert all(map(torch.equal, *found))
