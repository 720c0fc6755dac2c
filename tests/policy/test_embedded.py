"""The embedded policy is one that cooling cannot help: its mode is wrong, and what is right is there to be found."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cvxrl.api import evaluate

from ..helpers import ROOT

ASSETS = ROOT / "cvxrl" / "assets"
QUESTIONS, SAMPLES = 128, 16


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[float, int], Any]:
    folder = tmp_path_factory.mktemp("evaluations")
    return cache(lambda temperature, samples: _measure(folder / f"{temperature}-{samples}", temperature, samples))


def _measure(out: Path, temperature: float, samples: int) -> Any:
    return evaluate(
        "package:cvxrl/assets/forgetful",
        out=out,
        task="carrying-sums",
        questions=QUESTIONS,
        samples=samples,
        temperature=temperature,
    ).results


# Of thousands of completions, of a file that does not change.
@pytest.mark.slow
def test_cooling_makes_it_worse(results: Callable[[float, int], Any]) -> None:
    at_one = results(1.0, SAMPLES).accuracy.value
    assert 0.2 < at_one < 0.5
    assert results(0.0, 1).accuracy.value < at_one - 0.1
    assert results(0.3, 4).accuracy.value < at_one - 0.05


@pytest.mark.slow
def test_voting_makes_it_worse_and_the_right_answer_is_among_sixteen(results: Callable[[float, int], Any]) -> None:
    found = results(1.0, SAMPLES)
    sixteen = next(one for one in found.at_k if one.k == SAMPLES)
    assert sixteen.maj_at_k.value < found.accuracy.value - 0.05
    assert sixteen.pass_at_k.value > 0.85


@pytest.mark.parametrize("folder", ["base", "forgetful"])
def test_embedded_policies_are_small(folder: str) -> None:
    assert sum(file.stat().st_size for file in Path(ASSETS / folder).iterdir()) < 5 * 2**20
