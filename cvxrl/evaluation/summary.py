"""From verdicts to numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from cvxrl.errors import Problem, UserError
from cvxrl.evaluation.estimators import clustered_error, majority_at_k, pass_at_k
from cvxrl.evaluation.record import AtK, Estimate, QuestionRecord, Results


def summarize(questions: Sequence[QuestionRecord], ks: Sequence[int]) -> Results:
    """Compute every number of an evaluation.

    Args:
        questions: at least one, all with the same number n of completions.
        ks: each from 1 to n.
    """
    samples = len(questions[0].correct)
    correct = np.array([q.correct for q in questions])
    strict = np.array([q.strict for q in questions])
    accuracy = _estimate(correct.mean(axis=1))
    return Results(
        questions=len(questions),
        samples=samples,
        accuracy=accuracy,
        strict_accuracy=_estimate(strict.mean(axis=1)),
        disagreement=float((correct != strict).mean()),
        strict_missed=float((correct > strict).mean()),
        strict_only=float((correct < strict).mean()),
        truncated=float(np.mean([q.truncated for q in questions])),
        grader_errors=_share(error is not None for q in questions for error in q.error),
        no_answer=_share(found is None for q in questions for found in q.extracted),
        mean_tokens=float(np.mean([q.tokens for q in questions])),
        at_k=[
            AtK(
                k=k,
                pass_at_k=_estimate(pass_at_k(samples, correct.sum(axis=1), k)),
                # Every completion is as good as any other, so the best estimate of avg@k uses all n whatever k is.
                avg_at_k=accuracy,
                maj_at_k=_estimate([majority_at_k(q.extracted, list(map(bool, q.correct)), k) for q in questions]),
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


def _estimate(per_question: ArrayLike) -> Estimate:
    values = np.asarray(per_question, dtype=np.float64)
    error = clustered_error(values)
    return Estimate(value=float(values.mean()), stderr=None if math.isnan(error) else error)


def _share(flags: Iterable[bool]) -> float:
    return float(np.mean(list(flags)))
