"""A trust region that is measured on some of an optimizer step's sequences."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from helpers import tiny
from thread_world import Meeting, ThreadWorld, together
from trials import FAR, REGION, SMALL, put, sampled, stepped

from cvxrl.engine.loss import Loss
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.trial import drawn
from cvxrl.engine.world import SingleProcess
from cvxrl.errors import UserError
from cvxrl.recipe.digest import digest
from cvxrl.rollout.randomness import generator_for

KEYS = ("step/share", "step/evaluations", "step/refused")


def region(count: int | None) -> str:
    return f"step={{kind: trust-region, sequences: {'null' if count is None else count}}}"


def test_all_of_them_is_none_of_them_bit_for_bit() -> None:
    sequences = sampled("math_grpo")
    found = [stepped(tiny("math_grpo", *SMALL, FAR, region(n)), sequences) for n in (None, len(sequences))]
    assert 0 < found[0].metrics["step/share"] < 1
    assert found[0].metrics == found[1].metrics
    assert all(map(torch.equal, found[0].after, found[1].after))
    assert drawn(sequences, 99, SingleProcess(), torch.Generator()) is sequences


def test_some_of_a_batch_of_one_sequence_repeated_say_what_all_of_them_say() -> None:
    one = sampled("math_grpo").select([0] * 8)
    same = replace(one, positions=list(range(8)))
    whole, part = (stepped(tiny("math_grpo", *SMALL, FAR, region(n)), same).metrics for n in (None, 2))
    assert {key: part[key] for key in KEYS} == {key: whole[key] for key in KEYS}
    assert part["step/kl"] == pytest.approx(whole["step/kl"], rel=1e-3)


def test_the_kl_is_that_of_the_drawn_ones_and_no_others_are_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, sequences = tiny("math_grpo", *SMALL, FAR, region(3), "train.micro_batch=4"), sampled("math_grpo")
    passed: list[list[int]] = []
    value = Loss.value

    def counted(self: Loss, passes: Iterable[Sequences]) -> float:
        passed.append(sorted(position for micro in passes for position in micro.positions))
        return value(self, passes)

    monkeypatch.setattr(Loss, "value", counted)
    found = stepped(recipe, sequences)
    chosen = drawn(sequences, 3, SingleProcess(), generator_for(recipe.seed, "trust region", 0))
    assert passed == [chosen.positions] * int(found.metrics["step/evaluations"]) and len(chosen) == 3
    reader, kls = found.trainer.updater.loss.reader, []
    for these in (chosen, sequences):
        said = []
        for values in (found.before, found.after):
            put(found.trainer, values)
            said.append(torch.cat(reader.logits(these)).double().log_softmax(-1))
        kls.append(float((said[0].exp() * (said[0] - said[1])).sum(-1).mean()))
    assert found.metrics["step/kl"] == pytest.approx(kls[0], rel=1e-3) != pytest.approx(kls[1], rel=1e-2)


def test_how_a_step_is_split_changes_no_drawn_sequence() -> None:
    ways = ((), ("train.micro_batch=3",), ("train.micro_batch=1", "train.loss=chunked"))
    found = [stepped(tiny("math_grpo", *SMALL, FAR, region(3), *way), sampled("math_grpo")).metrics for way in ways]
    for metrics in found[1:]:
        assert {key: metrics[key] for key in KEYS} == {key: found[0][key] for key in KEYS}
        assert metrics["step/kl"] == pytest.approx(found[0]["step/kl"], rel=1e-3)


def test_processes_draw_together_what_one_draws() -> None:
    whole = sampled("math_grpo")
    parts, meeting = [whole.select(range(5)), whole.select(range(5, len(whole)))], Meeting(2)

    def draw(step: Sequences, rank: int | None, index: int) -> list[int]:
        world = SingleProcess() if rank is None else ThreadWorld(rank, meeting)
        return drawn(step, 4, world, generator_for(0, "trust region", index)).positions

    alone = [draw(whole, None, index) for index in range(4)]
    assert all(len(set(chosen)) == 4 for chosen in alone) and len(set(map(tuple, alone))) > 1
    for index, chosen in enumerate(alone):
        shares = together([lambda rank=rank, index=index: draw(parts[rank], rank, index) for rank in range(2)])  # type: ignore[misc]
        assert shares[0] + shares[1] == chosen


def test_a_response_without_a_token_is_not_drawn() -> None:
    whole = sampled("math_grpo")
    bare = replace(whole, responses=[[], *whole.responses[1:]])
    chosen = [drawn(bare, 1, SingleProcess(), generator_for(0, "trust region", i)).positions for i in range(40)]
    assert [0] not in chosen and len(set(map(tuple, chosen))) == len(whole) - 1


def test_what_cannot_be_measured_on_some_is_refused() -> None:
    assert (
        digest(tiny("math_grpo", region(None)))
        == digest(tiny("math_grpo", REGION))
        != digest(tiny("math_grpo", region(2)))
    )
    for how in ("model.dropout=true", "model.lora={rank: 2, dropout: 0.1}"):
        with pytest.raises(UserError, match=r"step\.sequences: with dropout"):
            tiny("math_grpo", region(2), how)
        tiny("math_grpo", region(None), how)
    with pytest.raises(UserError, match="sequences"):
        tiny("math_lco_kld", "step={kind: line-search, sequences: 2}")
