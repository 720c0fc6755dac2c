"""All sums of some lengths, no prompt twice; demonstrations forget carries."""

from __future__ import annotations

import numpy as np
import pytest

from cvxrl.recipe.task import CarryingSumsSource, space
from cvxrl.tasks.carrying_sums import CarryingSums, demonstrate, prefer


def task(seed: int = 0, **fields: object) -> CarryingSums:
    return CarryingSums(CarryingSumsSource.model_validate({"terms": (2, 4), **fields}), seed)


def test_every_prompt_is_held_out_or_trained_on_and_none_is_both() -> None:
    small = task(terms=(2, 3))
    held_out = [small.held_out(i).prompt for i in range(small.held_out_size)]
    assert len(set(held_out)) == len(held_out) == 110
    # Lengths take turns: 90 sums of two digits come again and again while the 900 of three are walked once.
    trained = [small.train(i).prompt for i in range(2 * 900)]
    assert len(set(trained)) == 990 and not set(trained) & set(held_out)
    assert len(set(trained) | set(held_out)) == space(CarryingSumsSource(terms=(2, 3))) == 1100


def test_no_prompt_comes_twice_before_all_of_its_length() -> None:
    trained = [task().train(i).prompt for i in range(3 * 90)]
    assert len(set(trained)) == len(trained)
    assert [prompt.count("+") for prompt in trained[:6]] == [1, 2, 3, 1, 2, 3]
    assert {task().train(i).prompt for i in range(0, 3 * 90, 3)} == {task().train(i).prompt for i in range(270, 540, 3)}


def test_held_out_prompts_are_the_same_for_every_seed_and_training_prompts_are_not() -> None:
    one, other = task(0), task(1)
    assert [one.held_out(i) for i in range(50)] == [other.held_out(i) for i in range(50)]
    assert [one.train(i).prompt for i in range(50)] != [other.train(i).prompt for i in range(50)]
    assert one.fingerprint == other.fingerprint != task(forget_carry=0.5).fingerprint


def test_an_answer_is_the_sum_whatever_the_demonstration_says() -> None:
    for i in range(60):
        example = task(forget_carry=1.0).train(i)
        assert int(example.answer) == sum(map(int, example.prompt[:-1].split("+")))


def test_a_forgotten_carry_is_ten_too_small_and_the_chain_goes_on_from_it() -> None:
    rng = np.random.default_rng(0)
    assert demonstrate([7, 8, 5], 0.0, rng) == "7+8=15+5=20"
    assert demonstrate([7, 8, 5], 1.0, rng) == "7+8=5+5=0"
    assert demonstrate([7, 8, 4], 1.0, rng) == "7+8=5+4=9"
    assert demonstrate([1, 2, 3], 1.0, rng) == "1+2=3+3=6"


def test_steps_that_carry_forget_as_often_as_asked() -> None:
    rng = np.random.default_rng(0)
    forgotten = sum(demonstrate([9, 9], 0.6, rng) == "9+9=8" for _ in range(4000)) / 4000
    assert abs(forgotten - 0.6) < 3 * (0.24 / 4000) ** 0.5


def test_a_preference_is_for_the_faultless_sum() -> None:
    rng = np.random.default_rng(0)
    assert prefer([7, 8, 1], rng) == ("7+8=15+1=16", "7+8=5+1=6")
    assert prefer([1, 2, 3], rng)[1] in ("1+2=13+3=16", "1+2=3+3=16")
    for _ in range(50):
        chosen, rejected = prefer([7, 8, 5, 6], rng)
        assert chosen == "7+8=15+5=20+6=26" != rejected


@pytest.mark.parametrize("terms", [(1, 3), (4, 3), (3, 8)])
def test_lengths_that_cannot_be_listed_are_refused(terms: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"needs 2 <=|all sums are listed"):
        CarryingSumsSource(terms=terms)
