"""LCOTrainer: the loss and gradient of our engine on the same batch, and TRL's own loop around it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from helpers import new_model, quick_if, tiny
from torch import Tensor

from cvxrl.advantages import compute_advantages
from cvxrl.comparison.sources import read_run
from cvxrl.engine.credit import with_group_advantages
from cvxrl.engine.loss import Loss
from cvxrl.engine.sequences import Sequences
from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.integrations.sections import check_sections
from cvxrl.recipe.schema import Recipe

pytest.importorskip("trl", reason="trl is not installed")

if TYPE_CHECKING:
    from cvxrl.integrations.trl import LCOTrainer

QUIET: dict[str, Any] = {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def our_part() -> Any:
    """Our part of TRL, which takes seconds to import: not while tests are collected, nor where none of these is run."""
    from cvxrl.integrations import trl

    return trl


def lco_trainer(recipe: Recipe, model: Any, tokenizer: Any, folder: Path, **settings: Any) -> LCOTrainer:
    train, held, reward = our_part().recipe_task(recipe, tokenizer, held_out=4)
    args = our_part().LCOConfig.from_recipe(recipe, output_dir=str(folder), **{**QUIET, **settings})
    return our_part().LCOTrainer(model, reward, args, train, held, tokenizer)


def engine(recipe: Recipe, dtype: torch.dtype) -> tuple[Loss, Sequences]:
    """Our loss, and the rollouts of the first step with their advantages."""
    trainer = Trainer.build(recipe)
    sequences = trainer.collector.collect(1).sequences
    trainer.policy.model.to(dtype)
    return trainer.updater.loss, sequences


def padded(rows: list[list[int]], left: bool) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    space = [[0] * (width - len(row)) for row in rows]
    ids = [s + r if left else r + s for r, s in zip(rows, space, strict=True)]
    mask = [s + [1] * len(r) if left else [1] * len(r) + s for r, s in zip(rows, space, strict=True)]
    return torch.tensor(ids), torch.tensor(mask)


def as_trl(sequences: Sequences) -> dict[str, Any]:
    """The same batch as TRL's trainer has it: prompts padded on the left, completions on the right."""
    assert sequences.advantages is not None and sequences.group_advantages is not None
    prompt_ids, prompt_mask = padded(sequences.prompts, left=True)
    completion_ids, completion_mask = padded(sequences.responses, left=False)
    return {
        **{"prompt_ids": prompt_ids, "prompt_mask": prompt_mask},
        **{"completion_ids": completion_ids, "completion_mask": completion_mask},
        "advantages": torch.stack([a[0] for a in sequences.advantages]),
        "group_advantages": torch.stack(sequences.group_advantages),
    }


def shift(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter))


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture(scope="module")
def sampled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A policy and its rollouts with made-up rewards, and a trainer of TRL on a copy of it.

    The embedded policy's family computes norms in fp32 whatever it is given; GPT-2 is float64 throughout, and has
    absolute positions.
    """
    dtype, folder = request.param, tmp_path_factory.mktemp("trl")
    sets = ["train.inner_epochs=2"]
    if dtype == torch.float64:
        embedded = engine(tiny("math_lco_kld"), torch.float32)[0].policy
        size = dict(vocab_size=len(embedded.tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=2)
        new_model("GPT2", **size).save_pretrained(folder / "gpt2")
        embedded.tokenizer.save_pretrained(folder / "gpt2")
        sets.append(f"model.path={folder / 'gpt2'}")
    loss, sequences = engine(tiny("math_lco_kld", *sets), dtype)
    model = copy.deepcopy(loss.policy.model)
    return dtype, sets, loss.policy, sequences, lco_trainer(loss.recipe, model, loss.policy.tokenizer, folder)


WAYS: list[tuple[str, tuple[str, ...]]] = [
    ("math_lco_kld", ("reduction=token-mean",)),
    ("math_lco_kld_paper", ("reduction=sequence-mean",)),
    ("math_lco_mse", ("reduction=constant",)),
    ("math_lco_lch", ("objective.tilt=linear",)),
    ("math_lco_kld", ("objective.support={kind: top-k, k: 4}",)),
    ("math_gspo", ()),
    ("math_dro", ("advantage=rloo",)),
]


@pytest.mark.parametrize(
    ("sampled", "recipe", "sets"),
    quick_if(
        lambda dtype, *way: way in (WAYS[0], WAYS[2], WAYS[5]) and (dtype == torch.float64 or way == WAYS[0]),
        [(dtype, *way) for dtype in TOLERANCE for way in WAYS],
    ),
    indirect=["sampled"],
)
def test_loss_and_gradient_are_those_of_our_engine(recipe: str, sets: tuple[str, ...], sampled: Any) -> None:
    """On the policy that sampled, and after it has moved away from what it then said."""
    dtype, model_sets, policy, sequences, trainer = sampled
    # Full logits are fp32, whatever the policy is: another way to the same loss, but not to its digits.
    way = "chunked" if dtype == torch.float64 else "full-logits"
    loaded = tiny(recipe, *model_sets, *sets, f"train.loss={way}")
    rewards_PG = torch.rand(
        len(sequences) // loaded.group_size, loaded.group_size, generator=torch.Generator().manual_seed(1)
    )
    sequences = with_group_advantages(sequences, compute_advantages(rewards_PG, loaded.advantage))
    loss = Loss(loaded, copy.deepcopy(policy))
    trainer.model.load_state_dict(policy.model.state_dict())
    named = {name: getattr(loaded, name).model_dump(mode="json") for name in ("objective", "advantage")}
    trainer._sections = check_sections(named | {"reduction": loaded.reduction})
    batch = as_trl(sequences)
    on_policy, off_policy = loss.remember(sequences, off_policy=False), loss.remember(sequences, off_policy=True)
    remembered = trainer._remember(batch)
    for ours, theirs in ((on_policy, batch), (off_policy, batch | remembered)):
        for model in (loss.policy.model, trainer.model):
            model.zero_grad()
        expected, found = loss.backward(loss.weigh(ours))["loss"], trainer._compute_loss(trainer.model, theirs)
        found.backward()
        assert float(found.detach()) == pytest.approx(expected, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
        mine, made = gradients(loss.policy.model), gradients(trainer.model)
        scale = max(float(g.abs().max()) for g in mine.values())
        assert mine.keys() == made.keys() and scale > 1e-4
        assert max(float((mine[k] - made[k]).abs().max()) for k in mine) <= TOLERANCE[dtype] * scale
        shift(loss.policy.model)
        shift(trainer.model)


def test_the_batches_of_an_optimizer_step_share_its_normaliser(tmp_path: Path) -> None:
    recipe = tiny("math_lco_kld")
    loss, sequences = engine(recipe, torch.float32)
    size = len(sequences) // 4
    settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 4, "steps_per_generation": 4}
    trainer = lco_trainer(recipe, loss.policy.model, loss.policy.tokenizer, tmp_path, **settings)
    parts = [as_trl(sequences.select(range(k * size, (k + 1) * size))) for k in range(4)]
    lengths = [int(part["completion_mask"].sum()) for part in parts]
    assert len(set(lengths)) > 1, "equal parts would hide a wrong normaliser"
    trainer._buffered_inputs = parts
    total = sum(float(trainer._compute_loss(trainer.model, part).detach()) for part in parts)
    assert total == pytest.approx(loss.evaluate(loss.weigh(sequences))["loss"], rel=1e-4)


def test_advantages_are_the_recipes_and_trl_logs_them(tmp_path: Path) -> None:
    recipe = tiny("math_lco_kld", "advantage=rloo")
    loss, _ = engine(recipe, torch.float32)
    trainer = lco_trainer(recipe, loss.policy.model, loss.policy.tokenizer, tmp_path)
    size = trainer.num_generations
    trainer._last_rewards = torch.tensor([[1.0], *[[0.0]] * (size - 1), *[[1.0]] * size])
    trainer._logs["advantages"].extend([9.0] * 2 * size)
    found = trainer._credit(2 * size)
    expected = [1.0, *[-1 / (size - 1)] * (size - 1), *[0.0] * size]
    assert found["advantages"].tolist() == pytest.approx(expected)
    assert list(trainer._logs["advantages"]) == pytest.approx(expected)
    assert found["group_advantages"][-1].tolist() == [0.0] * size
    trainer._last_rewards = torch.full((size, 1), torch.nan)
    with pytest.raises(UserError, match="got no reward"):
        trainer._credit(size)


@pytest.mark.parametrize("epochs", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_trls_loop_trains_and_compare_reads_it(epochs: int, tmp_path: Path) -> None:
    recipe = tiny("math_lco_kld", "train.steps=2", "train.minibatches=2", f"train.inner_epochs={epochs}", "seed=3")
    loss, _ = engine(recipe, torch.float32)
    before = copy.deepcopy(loss.policy.model.state_dict())
    folder = tmp_path / "lco-seed3"
    settings = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "log_completions": True}
    evaluated = {"eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 16, "num_generations_eval": 4}
    trainer = lco_trainer(recipe, loss.policy.model, loss.policy.tokenizer, folder, **settings, **evaluated)
    trainer.train()
    assert trainer.state.global_step == 4 * epochs
    assert any(not torch.equal(before[k], v) for k, v in loss.policy.model.state_dict().items())
    run = read_run(folder)
    assert (run.method, run.seed, run.status, run.last_step) == ("lco", 3, "finished", 4 * epochs)
    assert {"reward/mean", "reward/correct", "policy/entropy", "grad/norm", "eval/accuracy", "loss"} <= set(run.metrics)
    assert "lco/tilt_abs" in run.metrics and (run.settings or {})["num_iterations"] == epochs  # type: ignore[attr-defined]
    history = json.loads((folder / f"checkpoint-{4 * epochs}" / "trainer_state.json").read_text())["log_history"]
    assert all(entry["grad_norm"] > 0 for entry in history if "grad_norm" in entry)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": {"kind": "lco-kld", "bta": 2}}, "did you mean `beta`"),
        ({"objective": "tpo"}, "compares samples of a prompt"),
        ({"objective": "sft"}, "does not learn from rollouts"),
        ({"advantage": "gae"}, "no function of the rewards"),
        ({"reduction": "mean"}, "token-mean"),
        ({"loss_type": "grpo"}, "'grpo' would be ignored"),
        ({"beta": 0.1}, "0.1 would be ignored"),
        ({"top_p": 0.9}, "0.9 would be ignored"),
        ({"gradient_accumulation_steps": 2, "steps_per_generation": 3}, "a multiple of gradient_accumulation_steps"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(settings: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        our_part().LCOConfig(output_dir=str(tmp_path), **{**QUIET, **settings})


def test_recipes_that_trls_loop_does_not_follow_are_refused_at_once(tmp_path: Path) -> None:
    sets = ["step.kind=line-search", "optim.warmup_steps=3", "rollout.lag=1"]
    with pytest.raises(UserError) as raised:
        our_part().LCOConfig.from_recipe("math_lco_kld", sets, output_dir=str(tmp_path), **QUIET)
    assert [p.key for p in raised.value.problems] == ["step.kind", "optim.warmup_steps", "rollout.lag"]


def test_another_version_of_trl_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from cvxrl.integrations import trl_config

    monkeypatch.setattr(trl_config, "version", lambda _: "1.17.0")
    with pytest.raises(UserError, match=r"TRL 1\.17\.0 is installed"):
        trl_config.require_trl()
