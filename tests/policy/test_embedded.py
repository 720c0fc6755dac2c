"""The embedded policy is one that cooling cannot help: its mode is wrong, and what is right is there to be found."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cvxrl.api import evaluate

from ..helpers import ROOT

ASSETS = ROOT / "cvxrl" / "assets"
QUESTIONS, SAMPLES = 256, 16


@cache
def results(temperature: float, samples: int) -> Any:
    return evaluate(
        "package:cvxrl/assets/forgetful",
        task="carrying-sums",
        questions=QUESTIONS,
        samples=samples,
        temperature=temperature,
    ).results


def test_cooling_makes_it_worse() -> None:
    at_one = results(1.0, SAMPLES).accuracy.value
    assert 0.2 < at_one < 0.5
    assert results(0.0, 1).accuracy.value < at_one - 0.1
    assert results(0.3, 1).accuracy.value < at_one - 0.1


def test_voting_makes_it_worse_and_the_right_answer_is_among_sixteen() -> None:
    found = results(1.0, SAMPLES)
    assert found.maj_at_k[SAMPLES].value < found.accuracy.value - 0.05
    assert found.pass_at_k[SAMPLES].value > 0.85


@pytest.mark.parametrize("folder", ["base", "forgetful"])
def test_embedded_policies_are_small(folder: str) -> None:
    assert sum(file.stat().st_size for file in Path(ASSETS / folder).iterdir()) < 5 * 2**20
