"""Two ranks with half of the parameters each against one process: passes, weights, finite checks, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from tiny_models import save_family
from torch import Tensor
from two_ranks import ranks

from cvxrl.engine.divergence import DivergedError, require_finite_gradients, require_finite_parameters
from cvxrl.engine.optimizer import build_optimizer
from cvxrl.engine.state import Position, load_state, read_trainer_state, save_state
from cvxrl.engine.trainer import Hooks, Trainer
from cvxrl.engine.update import global_norm
from cvxrl.engine.world import SingleProcess, World, local_part
from cvxrl.errors import UserError
from cvxrl.policy.identity import hash_weights
from cvxrl.policy.model import Policy
from cvxrl.recipe.schema import Recipe
from cvxrl.recipe.training import AdafactorSpec
from cvxrl.report.stop import StopRequest
from ranks.test_replicated import LOSS, SHORT, SMALL, Outcome, compare, compare_long, otherwise_rounded, outcome

# Three prompts on two ranks: one has more passes than the other, and with six minibatches at times none.
CASES: Mapping[str, tuple[str, ...]] = {
    "grpo": ("math_grpo", "train.check_every=1", "checkpoint.every=2"),
    "off-policy": ("math_lco_kld", "train.minibatches=6", "train.micro_batch=2"),
    "ppo, chunked": ("math_ppo", "train.loss=chunked", "train.micro_batch=3"),
    "lora": ("math_grpo", "model.lora={rank: 4}", "step={kind: trust-region, kl: 1e-3, sequences: 5}"),
    "search": (
        "math_lco_kld",
        "step.kind=line-search",
        "regularizer.kl_coefficient=0.05",
        "train.gradient_checkpointing=true",
        "train.micro_batch=3",
    ),
    "gpt_neox": ("base_sft", "optim={kind: sgd, lr: 0.1, momentum: 0.9}", "logging.gradients=0"),
    "llama": ("base_sft", "train.loss=chunked", "train.minibatches=3"),
    "lora, chunked": ("math_lora", "train.loss=chunked", "regularizer.kl_coefficient=0.05"),
    "dense": ("math_lco_kld_dense",),
    "dpo": ("pref_dpo",),
}
QUICK = ("grpo", "ppo, chunked")
WEIGHT = 2e-4
PROMPTS, RESPONSES = [[3, 4, 5], [6, 7]], [[2, 3, 4], [5, 6]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sharded")
    save_family("gpt_neox", made / "gpt_neox")
    save_family("llama", made / "llama", tie_word_embeddings=False)
    return made


def recipe_of(case: str, folder: Path, steps: int = 0) -> Recipe:
    """Of the quick set, or with so many steps."""
    name, *overrides = CASES[case]
    if name == "base_sft":
        overrides += ["model.scratch=null", f"model.path={folder / case}", "eval.every=0"]
    return tiny(name, *SMALL, *overrides, *((f"train.steps={steps}",) if steps else SHORT))


def sharded(recipe: Recipe) -> Recipe:
    return recipe.model_copy(update={"placement": recipe.placement.model_copy(update={"shard": "full"})})


def on_ranks(recipes: Mapping[str, Recipe], more: Mapping[str, Callable[[World], Any]]) -> dict[str, list[Any]]:
    """Of every recipe its outcome, by rank, of the first twice, and what each of the other jobs returns."""

    def job(world: Any) -> dict[str, Any]:
        world.open(torch.device("cpu"), 120.0)
        found: dict[str, Any] = {name: outcome(sharded(recipe), world) for name, recipe in recipes.items()}
        found["again"] = outcome(sharded(next(iter(recipes.values()))), world)
        return found | {name: do(world) for name, do in more.items()}

    told = ranks(job)
    return {name: [one[name] for one in told] for name in told[0]}


def built(world: World, *overrides: str) -> Trainer:
    return Trainer.build(sharded(tiny("math_grpo", "eval.every=0", *overrides)), world)


def logits(policy: Policy) -> Tensor:
    with torch.no_grad():
        return policy.response_outputs(PROMPTS, RESPONSES).logits_NV


def pull(policy: Policy) -> None:
    """Make a gradient, all of it on each of the ranks."""
    policy.run(lambda: policy.response_outputs(PROMPTS, RESPONSES).logits_NV.square().sum()).backward()


def pass_between_backward_and_step(world: World) -> tuple[Tensor, Tensor]:
    """Logits after a step, before which passes without gradient were made; and those of one process after its own."""
    trainer = built(world, "train.loss=chunked")
    policy, head = trainer.policy, trainer.updater.loss.reader.head
    alone = Trainer.build(tiny("math_grpo", "eval.every=0"))
    pull(policy)
    with policy.whole():
        logits(policy)
    logits(policy)
    for _ in range(world.size):
        pull(alone.policy)
    for optimizer in (trainer.optimizer, alone.optimizer):
        optimizer.param_groups[0]["lr"] = 0.01
        optimizer.step()
    with policy.whole():
        assert head is not None
        assert torch.allclose(head.weight_VH, alone.policy.model.get_output_embeddings().weight, atol=1e-6)
    return logits(policy), logits(alone.policy)


def gradient(world: World) -> tuple[dict[str, Tensor], dict[str, Tensor], float]:
    """Of the written-out pass: every rank's sum, gathered, and what one process has; and its norm over ranks."""
    trainer = built(world)
    pull(trainer.policy)
    found = {name: p.grad for name, p in trainer.policy.model.named_parameters()}
    norm = float(global_norm([g for g in found.values() if g is not None], world))
    alone = Trainer.build(tiny("math_grpo", "eval.every=0")).policy
    pull(alone)
    gathered = {name: g.full_tensor() for name, g in found.items()}  # type: ignore[union-attr]
    return gathered, {name: p.grad for name, p in alone.model.named_parameters() if p.grad is not None}, norm


def not_a_number(world: World) -> list[str]:
    """What is said where one entry, of the last rank's part, is not a number."""
    policy, said = built(world).policy, []
    pull(policy)
    norm = policy.model.model.norm.weight
    for tensor in (norm.grad, norm):
        if not world.is_main:
            local_part(tensor)[-1] = torch.nan
        try:
            if tensor is norm:
                require_finite_parameters(policy.model, world)
            total = global_norm((p.grad for p in policy.model.parameters()), world)
            require_finite_gradients(policy.model, total, world)
        except DivergedError as error:
            said.append(str(error))
    return said


def refused(world: World) -> str:
    try:
        build_optimizer([built(world).policy.model], AdafactorSpec())
    except UserError as error:
        return str(error)
    return ""


def checkpoints(folder: Path) -> Callable[[World], Any]:
    def job(world: World) -> tuple[str, list[str], Any]:
        """Digests of a policy that was saved by all ranks, of it loaded again, and of one that was not sharded."""
        trainer, found = built(world, "train.steps=1", "optim.betas=[0.8, 0.9]"), []
        silent = Hooks(lambda _: None, lambda *_: None, lambda *_: None, lambda _: None)
        assert trainer.run(silent, StopRequest())
        parts = (trainer.policy, trainer.critic, trainer.optimizer)
        saved = folder / "saved"
        saved.mkdir(exist_ok=True)
        save_state(saved, *parts, trainer.position, is_main=world.is_main)
        state = {key: dict(entry) for key, entry in trainer.optimizer.state_dict()["state"].items()}
        with trainer.policy.whole():
            digest = hash_weights(trainer.policy.model)
        world.gather(None)
        for source in (saved, folder / "whole"):
            fresh = built(world, "train.steps=1", "seed=3")
            assert load_state(source, fresh.policy, fresh.critic, fresh.optimizer).step == 1
            with fresh.policy.whole():
                found.append(hash_weights(fresh.policy.model))
            if source == saved:
                again = fresh.optimizer.state_dict()["state"]
                assert all(torch.equal(state[i][k], again[i][k]) for i in state for k in state[i])
        return digest, found, [tuple(p.shape) for p in trainer.optimizer.param_groups[0]["params"]]

    return job


def write_whole(folder: Path) -> str:
    """The checkpoint of one process."""
    alone = Trainer.build(tiny("math_grpo", "eval.every=0", "train.steps=1", "optim.betas=[0.8, 0.9]"))
    silent = Hooks(lambda _: None, lambda *_: None, lambda *_: None, lambda _: None)
    assert alone.run(silent, StopRequest())
    folder.mkdir()
    save_state(folder, alone.policy, None, alone.optimizer, Position(1))
    return hash_weights(alone.policy.model)


@pytest.fixture(scope="module")
def together(folder: Path) -> dict[str, list[Any]]:
    digest = write_whole(folder / "whole")
    jobs = {
        "stale": pass_between_backward_and_step,
        "gradient": gradient,
        "nan": not_a_number,
        "refused": refused,
        "checkpoints": checkpoints(folder),
    }
    found = on_ranks({case: recipe_of(case, folder) for case in QUICK}, jobs)
    return found | {"digest": [digest]}


@pytest.mark.parametrize("case", QUICK)
def test_two_ranks_do_what_one_process_does(case: str, together: dict[str, list[Outcome]], folder: Path) -> None:
    compare(case, outcome(recipe_of(case, folder), SingleProcess()), together[case], WEIGHT)


def test_the_same_command_gives_the_same_bits(together: dict[str, list[Outcome]]) -> None:
    first, again = together[QUICK[0]], together["again"]
    assert [one.records for one in first] == [one.records for one in again]
    assert all(torch.equal(first[0].weights[name], weights) for name, weights in again[0].weights.items())


def test_a_pass_between_backward_and_step_leaves_no_old_weights_behind(together: dict[str, Any]) -> None:
    for mine, theirs in together["stale"]:
        assert float((mine - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


def test_gradients_of_the_written_out_pass_are_summed_over_ranks(together: dict[str, Any]) -> None:
    for mine, alone, norm in together["gradient"]:
        scale = max(float(g.abs().max()) for g in alone.values())
        assert mine.keys() == alone.keys()
        assert max(float((mine[name] - 2 * alone[name]).abs().max()) for name in mine) < LOSS * scale
        assert norm == pytest.approx(2 * float(global_norm(alone.values())), rel=1e-6)


def test_a_number_that_is_none_on_one_rank_is_seen_by_all(together: dict[str, Any]) -> None:
    one, other = together["nan"]
    assert one == other
    assert one == [
        "gradient of model.norm.weight: 1 of 64 entries are not finite",
        "parameter model.norm.weight: 1 of 64 entries are not finite",
    ]


def test_what_needs_whole_matrices_is_refused(together: dict[str, Any]) -> None:
    assert all("whole matrices" in text and "placement.shard" in text for text in together["refused"])


def test_checkpoints_are_read_sharded_and_whole_whoever_wrote_them(together: dict[str, Any], folder: Path) -> None:
    (mine, found, shapes), (theirs, _, _) = together["checkpoints"]
    assert mine == theirs
    assert found == [mine, together["digest"][0]]
    alone = Trainer.build(tiny("math_grpo", "eval.every=0", "train.steps=1", "seed=5"))
    load_state(folder / "saved", alone.policy, None, alone.optimizer)
    assert hash_weights(alone.policy.model) == mine
    state = alone.optimizer.state_dict()["state"]
    assert state.keys() == read_trainer_state(folder / "whole", torch.device("cpu"))["optimizer"]["state"].keys()
    stepped = alone.optimizer.param_groups[0]["params"]
    assert [tuple(p.shape) for p in stepped] != shapes, "each rank stepped half of each"
    assert all(entry["exp_avg"].shape == p.shape for entry, p in zip(state.values(), stepped, strict=False))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_on_two_ranks(case: str, folder: Path) -> None:
    recipe = recipe_of(case, folder, 20)
    both = on_ranks({case: recipe}, {})
    compare_long(case, outcome(recipe, SingleProcess()), otherwise_rounded(recipe), both[case])
