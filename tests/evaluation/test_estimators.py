"""pass@k, maj@k and standard errors: against hand-worked values, all subsets, and simulation."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter

import numpy as np
import pytest

from cvxrl.evaluation.answers import strictly_correct
from cvxrl.evaluation.record import QuestionRecord
from cvxrl.evaluation.summary import clustered_error, default_ks, majority_at_k, parse_ks, pass_at_k, summarize
from cvxrl.recipe.extract import BoxedExtract, ExtractSpec, LastIntegerExtract, NoExtract, TagExtract
from cvxrl.tasks.extraction import extract


def test_one_of_four_correct() -> None:
    assert pass_at_k(4, [1], 1).tolist() == [0.25]
    assert pass_at_k(4, [1], 2).tolist() == pytest.approx([0.5])
    assert pass_at_k(4, [1], 4).tolist() == [1.0]


@pytest.mark.parametrize(("n", "c", "k"), [(n, c, k) for n in (1, 2, 5) for c in range(n + 1) for k in range(1, n + 1)])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_one(n: int, c: int, k: int) -> None:
    verdicts = [True] * c + [False] * (n - c)
    subsets = list(itertools.combinations(verdicts, k))
    assert pass_at_k(n, [c], k)[0] == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_with_replacement_would_be_biased() -> None:
    """Negative control: 1 - (1 - c/n)^k, what resampling with replacement estimates, misses the truth by a third."""
    biased = 1 - (1 - 1 / 4) ** 4
    assert biased == pytest.approx(0.684, abs=1e-3)
    assert pass_at_k(4, [1], 4)[0] == 1.0


def test_pass_at_k_is_stable_where_factorials_are_not() -> None:
    assert pass_at_k(1000, [1], 500)[0] == pytest.approx(0.5, abs=1e-12)
    exact = 1 - math.comb(970, 64) / math.comb(1000, 64)
    assert pass_at_k(1000, [30], 64)[0] == pytest.approx(exact, rel=1e-12)
    assert pass_at_k(10_000, [1], 1)[0] == pytest.approx(1e-4)


@pytest.mark.parametrize(("n", "correct", "k"), [(4, [1], 5), (4, [1], 0), (4, [5], 1), (4, [-1], 1), (4, [0.5], 1)])
def test_impossible_counts_are_refused(n: int, correct: list[float], k: int) -> None:
    with pytest.raises(ValueError, match="from"):
        pass_at_k(n, correct, k)


def brute_majority(answers: list[str | None], correct: list[bool], k: int) -> float:
    """The definition, subset by subset."""
    total = 0.0
    subsets = list(itertools.combinations(range(len(answers)), k))
    for subset in subsets:
        votes = Counter(a for i in subset if (a := answers[i]) is not None)
        leaders = [a for a in votes if votes[a] == max(votes.values())]
        for leader in leaders:
            verdicts = [c for a, c in zip(answers, correct, strict=True) if a == leader]
            total += sum(verdicts) / len(verdicts) / len(leaders)
    return total / len(subsets)


def test_majority_by_hand() -> None:
    assert majority_at_k(["1", "2"], [True, False], 2) == 0.5  # a tie between a right and a wrong answer
    assert majority_at_k(["1", "1", "2"], [True, True, False], 3) == 1.0
    assert majority_at_k(["1", "2", "2"], [True, False, False], 3) == 0.0
    assert majority_at_k(["1", "2", "3"], [True, False, False], 3) == pytest.approx(1 / 3)
    assert majority_at_k(["1", None, None], [True, False, False], 3) == 1.0  # the silent do not vote
    assert majority_at_k(["1", None], [True, False], 1) == 0.5  # half of the subsets are silent
    assert majority_at_k([None, None], [False, False], 2) == 0.0
    assert majority_at_k(["1", "2", "1"], [True, False, True], 1) == pytest.approx(2 / 3)  # maj@1 is the accuracy


def test_majority_equals_its_definition() -> None:
    rng = random.Random(0)
    for _ in range(150):
        n = rng.randint(1, 8)
        answers = [rng.choice([None, "1", "2", "3", "4"]) for _ in range(n)]
        correct = [a == "1" or (a == "2" and rng.random() < 0.3) for a in answers]
        k = rng.randint(1, n)
        assert majority_at_k(answers, correct, k) == pytest.approx(brute_majority(answers, correct, k)), (answers, k)


def test_majority_of_many_stays_a_probability() -> None:
    answers: list[str | None] = [str(i % 7) for i in range(1024)]
    value = majority_at_k(answers, [a == "3" for a in answers], 512)
    assert 0.1 < value < 0.2  # seven equal parties: about 1/7


def test_clustered_error_by_hand() -> None:
    # Means 0, 0.5, 1: s.d. 0.5, over sqrt(3).
    assert clustered_error([0.0, 0.5, 1.0]) == pytest.approx(0.5 / math.sqrt(3))
    assert math.isnan(clustered_error([1.0]))


def coverage(clustered: bool, simulations: int = 2000, questions: int = 200, samples: int = 4) -> float:
    """Share of 95% intervals that hold the true accuracy, when questions differ in difficulty."""
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(simulations):
        difficulty = rng.beta(0.4, 0.6, size=questions)  # mean 0.4
        right = rng.random((questions, samples)) < difficulty[:, None]
        accuracy = right.mean()
        naive = math.sqrt(accuracy * (1 - accuracy) / right.size)
        error = clustered_error(right.mean(axis=1)) if clustered else naive
        hits += abs(accuracy - 0.4) <= 1.96 * error
    return hits / simulations


def test_intervals_cover_what_they_say() -> None:
    assert 0.93 <= coverage(clustered=True) <= 0.97


def test_intervals_that_forget_the_clusters_do_not() -> None:
    assert coverage(clustered=False) < 0.85


# --- the strict grader ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("completion", "answer", "extraction", "right"),
    [
        ("4+7=11", "11", LastIntegerExtract(), True),
        ("the answer is 11.", "11", LastIntegerExtract(), True),
        ("11 is what I get from 4 and 7, I think", "11", LastIntegerExtract(), False),  # it does not end the reply
        ("=011", "11", LastIntegerExtract(), False),
        ("= 1,100", "1100", LastIntegerExtract(), False),
        ("= -3", "-3", LastIntegerExtract(), True),
        ("20-3", "3", LastIntegerExtract(), False),
        (r"so \boxed{\frac12}", r"\frac12", BoxedExtract(), True),
        (r"so \boxed{0.5}", r"\frac12", BoxedExtract(), False),  # equal as mathematics, not as text
        (r"so \boxed{7", "7", BoxedExtract(), False),
        ("<answer> yes </answer>", "yes", TagExtract(), True),
        (r"so \boxed{7}", "$7$", NoExtract(), True),
        ("seven", "seven", NoExtract(), True),
        ("", "", LastIntegerExtract(), False),
    ],
)
def test_strict(completion: str, answer: str, extraction: ExtractSpec, right: bool) -> None:
    found = extract(completion, extraction)
    assert strictly_correct(completion, answer, extraction, False, found) is right


def test_a_truncated_reply_is_never_strictly_right() -> None:
    assert not strictly_correct("4+7=11", "11", LastIntegerExtract(), True, "11")


# --- from verdicts to numbers -----------------------------------------------------------------------------------


def question(correct: list[int], **columns: list[object]) -> QuestionRecord:
    n = len(correct)
    values = {
        "strict": correct,
        "truncated": [0] * n,
        "error": [None] * n,
        "extracted": [str(c) for c in correct],
        "tokens": [5] * n,
    }
    return QuestionRecord.model_validate({"id": "q", "answer": "1", "correct": correct, **values, **columns})


def test_summary_by_hand() -> None:
    questions = [
        question([1, 0, 0, 0], strict=[0, 1, 0, 0], truncated=[0, 0, 0, 1], extracted=["1", "0", "0", None]),
        question([1, 1, 1, 1], error=[None, None, None, "timeout"], tokens=[5, 5, 5, 13]),
    ]
    results = summarize(questions, [1, 4])
    assert (results.questions, results.samples) == (2, 4)
    assert results.accuracy.value == 5 / 8
    assert results.accuracy.stderr == pytest.approx(0.375)  # means 1/4 and 1: s.d. 0.75/sqrt(2), over sqrt(2)
    assert results.disagreement == 2 / 8 and results.strict_missed == 1 / 8 and results.strict_only == 1 / 8
    assert results.truncated == 1 / 8 and results.grader_errors == 1 / 8 and results.no_answer == 1 / 8
    assert results.mean_tokens == 6
    one, four = results.at_k
    assert one.pass_at_k == one.avg_at_k == results.accuracy and one.maj_at_k.value == pytest.approx(5 / 8)
    assert four.pass_at_k.value == 1.0
    assert four.maj_at_k.value == 0.5  # `0` outvotes `1` on the first question


def test_one_question_has_no_standard_error() -> None:
    assert summarize([question([1, 0])], [1]).accuracy.stderr is None


def test_values_of_k() -> None:
    assert default_ks(1) == [1] and default_ks(15) == [1, 4] and default_ks(64) == [1, 4, 16, 64]
    assert parse_ks("16, 1,4,4") == [1, 4, 16]
