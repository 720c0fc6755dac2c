"""Tokens drawn from logits: as the distribution has them, however large the vocabulary and however it is laid out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cvxrl.rollout import large_vocabulary
from cvxrl.rollout.large_vocabulary import nucleus
from cvxrl.rollout.local_generator import draw

# Neither a multiple of a block nor of what is looked at together.
LARGE = 20 * large_vocabulary._BLOCK + 37


def logits(rows: int, seed: int = 0, spread: float = 4.0) -> Tensor:
    return spread * torch.randn(rows, LARGE, generator=torch.Generator().manual_seed(seed))


def numbers(rows: int) -> Tensor:
    return torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(9))


def by_hand(row: Tensor, number: float) -> tuple[int, float]:
    """The first token whose cumulative probability exceeds the number."""
    probs = torch.softmax(row.double(), dim=0)
    token = int((probs.cumsum(0) <= number).sum())
    return token, float(probs[token].log())


def test_draw_follows_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens, logprobs = draw(logits.expand(20_000, -1), uniform, temperature=0.5, top_p=1.0)
    expected = torch.softmax(logits[0] / 0.5, dim=0)
    shares = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(logprobs, expected.log()[tokens])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_a_large_vocabulary_is_drawn_from_as_by_hand(layout: str, temperature: float) -> None:
    rows = logits(40)
    given = rows if layout == "rows" else rows.t().contiguous().t()
    before = given.clone()
    tokens, logprobs = draw(given, numbers(40), temperature, 1.0)
    expected = [by_hand(row / temperature, float(u)) for row, u in zip(rows, numbers(40), strict=True)]
    assert tokens.tolist() == [token for token, _ in expected] and len(set(tokens.tolist())) > 30
    torch.testing.assert_close(logprobs, torch.tensor([p for _, p in expected]), rtol=0, atol=2e-6)
    assert torch.equal(given, before), "a decoder may own the logits"


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_the_most_probable_token_of_a_large_vocabulary_is_the_first_of_them(layout: str) -> None:
    rows = logits(20)
    rows[3, [900, 70]] = 30.0
    tokens, logprobs = draw(rows if layout == "rows" else rows.t().contiguous().t(), numbers(20), 0.0, 1.0)
    assert torch.equal(tokens, rows.argmax(dim=-1)) and int(tokens[3]) == 70
    expected = torch.log_softmax(rows.double(), dim=-1)[range(20), tokens]
    torch.testing.assert_close(logprobs.double(), expected, rtol=0, atol=2e-6)


def test_every_token_of_a_large_vocabulary_gets_its_share_of_the_numbers() -> None:
    row = logits(1, spread=1.0)
    middles = torch.softmax(row[0].double(), dim=0)
    middles = middles.cumsum(0) - middles / 2
    tokens, _ = draw(row.expand(LARGE, -1), middles, 1.0, 1.0)
    assert tokens.tolist() == list(range(LARGE))


@pytest.mark.parametrize("layout", ["rows", "columns"])
def test_rows_of_a_large_vocabulary_do_not_know_each_other(layout: str) -> None:
    rows = logits(33)
    whole = draw(rows if layout == "rows" else rows.t().contiguous().t(), numbers(33), 1.0, 1.0)
    for some in ([4], [30, 2, 17], list(range(20))):
        part = rows[some] if layout == "rows" else rows[some].t().contiguous().t()
        tokens, logprobs = draw(part, numbers(33)[some], 1.0, 1.0)
        assert torch.equal(tokens, whole[0][some])
        torch.testing.assert_close(logprobs, whole[1][some], rtol=0, atol=1e-6)


@pytest.mark.parametrize("number", [0.0, 1.0 - 2.0**-53])
def test_a_token_without_mass_is_never_drawn(number: float) -> None:
    """At both ends of the numbers and of the vocabulary, and from a block in which one token has mass."""
    rows = torch.full((3, LARGE), -torch.inf)
    rows[0, 700], rows[1, [5, 2000]], rows[2, [130, LARGE - 2]] = (
        1.0,
        torch.tensor([0.0, -9.0]),
        torch.tensor([-3.0, 2.0]),
    )
    tokens, logprobs = draw(rows, torch.full((3,), number, dtype=torch.float64), 1.0, 1.0)
    assert tokens.tolist() == ([700, 5, 130] if number == 0 else [700, 2000, LARGE - 2])
    assert float(logprobs[0]) == 0.0 and bool(torch.isfinite(logprobs).all())


def test_rounding_carries_nobody_past_the_mass_of_a_block() -> None:
    """A block of tiny mass behind a large one: what is left of the number is the block's mass give or take rounding."""
    rows = torch.full((64, LARGE), -torch.inf)
    rows[:, 3], rows[:, 300] = 0.0, -27.0 - torch.arange(64) / 50
    tokens, _ = draw(rows, torch.full((64,), 1.0 - 2.0**-53, dtype=torch.float64), 1.0, 1.0)
    assert tokens.tolist() == [300] * 64


def test_a_diverged_policy_still_says_tokens() -> None:
    """What is not a number is noticed by the trainer, who has to get that far."""
    tokens, logprobs = draw(torch.full((2, LARGE), torch.nan), numbers(2), 1.0, 1.0)
    assert bool(((tokens >= 0) & (tokens < LARGE)).all()) and bool(logprobs.isnan().all())


def test_a_likely_token_hides_no_unlikely_one() -> None:
    """A token of probability 1e-12 is drawn where the number asks for it, with its log-probability."""
    row = torch.full((1, LARGE), -torch.inf)
    row[0, 3], row[0, LARGE - 1] = 0.0, -27.631  # e^-27.631 = 1.0e-12
    tokens, logprobs = draw(row.expand(2, -1), torch.tensor([1 - 2e-12, 1 - 5e-13], dtype=torch.float64), 1.0, 1.0)
    assert tokens.tolist() == [3, LARGE - 1]
    torch.testing.assert_close(logprobs, torch.tensor([0.0, -27.631]), rtol=0, atol=2e-6)


def test_nucleus_keeps_the_smallest_sufficient_set() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert torch.isfinite(nucleus(logits, 0.6)).tolist() == [[True, True, False, False]]
    assert torch.isfinite(nucleus(logits, 0.01)).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize("top_p", [0.9, 0.01])
def test_a_nucleus_of_a_large_vocabulary_is_found_without_sorting_it(
    top_p: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same as by sorting all; rows whose most probable tokens do not hold the mass are sorted."""
    rows = logits(6) * torch.tensor([1.0, 0.02, 1.0, 1.0, 0.02, 1.0]).unsqueeze(-1)
    found = nucleus(rows, top_p)
    monkeypatch.setattr(large_vocabulary, "_TOP", LARGE)
    assert torch.equal(found, nucleus(rows, top_p))
    kept = torch.isfinite(found).sum(dim=-1)
    if top_p == 0.9:
        assert ((kept > 1024).tolist()) == [False, True, False, False, True, False]
    tokens, logprobs = draw(rows, numbers(6), 1.0, top_p)
    mass = torch.logsumexp(found.double(), dim=-1)
    torch.testing.assert_close(logprobs.double(), rows.double()[range(6), tokens] - mass, rtol=0, atol=2e-6)
    assert bool(torch.isfinite(found[range(6), tokens]).all())
