"""From verdicts to numbers: accuracy, pass@k and maj@k of n completions per question, each with its standard error.

Letters: Q questions, n completions of each, c of them right, k completions that the quantity speaks of.

Example: one question, 1 of 4 completions right: pass@1 = 0.25, pass@2 = 0.5, pass@4 = 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cvxrl.errors import Problem, UserError
from cvxrl.evaluation.record import AtK, Estimate, QuestionRecord, Results
from cvxrl.stats.proportion import clustered_share_interval

_CONFIDENCE = 0.95


def summarize(questions: Sequence[QuestionRecord], ks: Sequence[int]) -> Results:
    """Compute every number of an evaluation; those whose verdicts are unknown are None.

    Args:
        questions: at least one, all with the same number n of completions and the same columns.
        ks: each from 1 to n.
    """
    samples = len(questions[0].correct)
    correct = np.array([q.correct for q in questions])
    accuracy = _estimate(correct.mean(axis=1), samples)
    strict = None if questions[0].strict is None else np.array([q.strict for q in questions])
    return Results(
        questions=len(questions),
        samples=samples,
        accuracy=accuracy,
        strict_accuracy=None if strict is None else _estimate(strict.mean(axis=1), samples),
        disagreement=None if strict is None else float((correct != strict).mean()),
        strict_missed=None if strict is None else float((correct > strict).mean()),
        strict_only=None if strict is None else float((correct < strict).mean()),
        truncated=_mean([q.truncated for q in questions]),
        grader_errors=_mean([None if q.error is None else [e is not None for e in q.error] for q in questions]),
        no_answer=_mean([None if q.extracted is None else [e is None for e in q.extracted] for q in questions]),
        mean_tokens=_mean([q.tokens for q in questions]),
        at_k=[
            AtK(
                k=k,
                pass_at_k=_estimate(pass_at_k(samples, correct.sum(axis=1), k)),
                # Every completion is as good as any other, so the best estimate of avg@k uses all n whatever k is.
                avg_at_k=accuracy,
                maj_at_k=_majority(questions, k),
            )
            for k in ks
        ],
    )


def default_ks(samples: int) -> list[int]:
    """Powers of 4 up to the number of completions: 1, 4, 16, 64, ..."""
    return [4**i for i in range(samples.bit_length()) if 4**i <= samples]


def parse_ks(text: str) -> list[int]:
    """Read `1,4,16`.

    Raises:
        UserError: an entry is not a whole number above 0.
    """
    parts = [part.strip() for part in text.split(",")]
    wrong = [part for part in parts if not part.isascii() or not part.isdigit() or int(part) < 1]
    if wrong:
        shown = ", ".join(f"`{part}`" for part in wrong)
        raise UserError(Problem(f"{shown} is not a whole number above 0", "--k", remedy="write --k 1,4,16"))
    return sorted({int(part) for part in parts})


def check_ks(ks: Sequence[int], samples: int, remedy: str) -> None:
    """Raise UserError if a k is larger than the number of completions per question."""
    large = [str(k) for k in ks if k > samples]
    if large:
        message = f"{', '.join(large)} is more than the {samples} samples per question"
        raise UserError(Problem(message, "--k", remedy=remedy))


def pass_at_k(num_samples: int, correct: ArrayLike, k: int) -> NDArray[np.float64]:
    """Unbiased chance that at least one of k completions is right: 1 - C(n-c, k) / C(n, k).

    arXiv 2107.03374, eq. 1, as the product of (n-c-i)/(n-i) over i < k, so that no binomial is ever formed.

    Args:
        num_samples: n, completions per question.
        correct: c of every question, whole numbers from 0 to n [Q].
        k: from 1 to n.

    Returns:
        One number per question [Q].

    Raises:
        ValueError: k is not from 1 to n, or a c is not from 0 to n.
    """
    _check(num_samples, k)
    right = np.asarray(correct, dtype=np.float64)
    if np.any((right < 0) | (right > num_samples) | (right != np.floor(right))):
        raise ValueError(f"counts of right completions must be whole numbers from 0 to {num_samples}")
    drawn = np.arange(k, dtype=np.float64)
    wrong_left = np.clip((num_samples - right)[..., None] - drawn, 0, None)
    missed: NDArray[np.float64] = np.prod(wrong_left / (num_samples - drawn), axis=-1)
    return 1 - missed


def majority_at_k(answers: Sequence[str | None], correct: Sequence[bool], k: int) -> float:
    """Expected correctness of a majority vote among k of n completions, over all C(n, k) subsets, exactly.

    Completions vote for the answer that was extracted, as text; those without an answer do not vote. A tie is broken at
    random: if 2 answers lead and 1 of them is right, the vote is worth 1/2. If nobody votes, the vote is wrong. Where
    the grader judged equal texts differently, an answer is right to the share of its completions judged right.

    Method: for every size t of the winning party, a polynomial in the number of completions chosen counts the subsets
    in which r parties have t votes and no party has more; a second one carries the right ones among those r along.

    Args:
        answers: extracted answer of every completion, or None [n].
        correct: verdict on every completion [n].
        k: from 1 to n.

    Raises:
        ValueError: the lengths differ, or k is not from 1 to n.
    """
    if len(answers) != len(correct):
        raise ValueError(f"{len(answers)} answers but {len(correct)} verdicts")
    num_samples = len(answers)
    _check(num_samples, k)
    parties: dict[str, list[bool]] = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer is not None:
            parties.setdefault(answer, []).append(bool(right))
    if not any(map(any, parties.values())):
        return 0.0
    silent = sum(answer is None for answer in answers)
    return _majority_of(tuple((sum(party), len(party)) for party in parties.values()), silent, k)


@lru_cache(maxsize=1 << 16)
def _majority_of(parties: tuple[tuple[int, int], ...], silent: int, k: int) -> float:
    """`majority_at_k` of parties, each by its right completions and its size; many questions have the same ones."""
    largest = min(k, max(size for _, size in parties))
    num_samples = silent + sum(size for _, size in parties)
    won = sum(_won_with(parties, silent, votes, k) for votes in range(1, largest + 1))
    return won / math.comb(num_samples, k)


def _won_with(parties: Sequence[tuple[int, int]], silent: int, votes: int, k: int) -> float:
    """Subsets of size k whose leading parties have ``votes`` votes, weighed by the share of right leaders."""
    most_leaders = k // votes
    counts_RS = np.zeros((most_leaders + 1, k + 1))  # leaders so far, completions chosen so far
    for chosen in range(min(silent, k) + 1):
        counts_RS[0, chosen] = math.comb(silent, chosen)
    right_RS = np.zeros_like(counts_RS)
    for right, size in parties:
        share = right / size
        new_counts, new_right = counts_RS.copy(), right_RS.copy()
        for chosen in range(1, min(size, votes - 1) + 1):
            ways = math.comb(size, chosen)
            new_counts[:, chosen:] += ways * counts_RS[:, :-chosen]
            new_right[:, chosen:] += ways * right_RS[:, :-chosen]
        if size >= votes:
            ways = math.comb(size, votes)
            new_counts[1:, votes:] += ways * counts_RS[:-1, :-votes]
            new_right[1:, votes:] += ways * (right_RS[:-1, :-votes] + share * counts_RS[:-1, :-votes])
        counts_RS, right_RS = new_counts, new_right
    leaders = np.arange(1, most_leaders + 1)
    return float((right_RS[1:, k] / leaders).sum())


def clustered_error(per_question: ArrayLike) -> float:
    """Standard error of the mean over questions, each a cluster of completions (arXiv 2411.00640, eq. 4).

    Completions of one question resemble each other, so the question is the unit: s.d. over questions / sqrt(Q).

    Args:
        per_question: one number per question [Q].

    Returns:
        NaN for fewer than two questions.
    """
    values = np.asarray(per_question, dtype=np.float64)
    return float(values.std(ddof=1) / math.sqrt(values.size)) if values.size > 1 else math.nan


def _check(num_samples: int, k: int) -> None:
    if not 1 <= k <= num_samples:
        raise ValueError(f"k must be from 1 to {num_samples}, the number of completions, got {k}")


def _majority(questions: Sequence[QuestionRecord], k: int) -> Estimate | None:
    votes = [majority_at_k(q.extracted, list(map(bool, q.correct)), k) for q in questions if q.extracted is not None]
    return _estimate(votes) if votes else None


def _estimate(per_question: ArrayLike, samples: int = 1) -> Estimate:
    """A share over questions, of which each one's rests on that many completions."""
    values = np.asarray(per_question, dtype=np.float64)
    share, error = float(values.mean()), clustered_error(values)
    if math.isnan(error):
        return Estimate(value=share, stderr=None)
    interval = clustered_share_interval(share, error, values.size, values.size * samples, _CONFIDENCE)
    return Estimate(value=share, stderr=error, low=interval.low, high=interval.high)


def _mean(columns: Sequence[Sequence[float] | None]) -> float | None:
    """Mean over all completions of all questions; None where a question's are unknown."""
    known = [column for column in columns if column is not None]
    return float(np.mean(known)) if len(known) == len(columns) else None
