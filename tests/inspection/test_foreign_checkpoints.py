"""Checkpoints and completions of TRL: the step that TRL took next, and what is said of all that is not known."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from trl_checkpoint import PROMPTS, REPLIES, REWARDS, SETTINGS, Arguments, write_checkpoint, write_completions

from cvxrl.errors import UserError
from cvxrl.inspection.checkpoint import LoadedCheckpoint, load_checkpoint
from cvxrl.inspection.foreign.checkpoint import find_foreign
from cvxrl.inspection.foreign.choice import choose_file
from cvxrl.inspection.foreign.completions import read_completions
from cvxrl.inspection.foreign.moments import likeness, read_moments
from cvxrl.inspection.foreign.state import gradients_of
from cvxrl.inspection.measure_update import take_steps
from cvxrl.inspection.options import InspectOptions
from cvxrl.inspection.plan import make_plan

QUICK = ("--parts", "update", "--drift", "0", "--objectives", "grpo")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run's checkpoint of step 2, and the weights after its third step; never written to."""
    folder = tmp_path_factory.mktemp("trl") / "grpo-seed3"
    checkpoint, after = write_checkpoint(folder)
    write_completions(folder / "completions" / "completions_00002.parquet", 2)
    write_completions(folder / "completions" / "completions_00003.parquet", 3)
    return checkpoint, after


@pytest.fixture
def fresh(made: Any, tmp_path: Path) -> Callable[..., Path]:
    """Makes a checkpoint to be spoilt, with completions of its own step and, if asked, other settings."""

    def make(**settings: Any) -> Path:
        checkpoint = tmp_path / "run" / "checkpoint-2"
        shutil.copytree(made[0], checkpoint)
        write_completions(tmp_path / "run" / "completions" / "completions_00003.parquet", 3)
        if settings:
            torch.save(Arguments({**SETTINGS, **settings}), checkpoint / "training_args.bin")
        return checkpoint

    return make


def load(path: Path, tmp_path: Path, **options: Any) -> LoadedCheckpoint:
    plan = make_plan(InspectOptions(str(path), out=tmp_path / "inspect", objectives=("grpo", "lco-kld"), **options))
    return load_checkpoint(plan, plan.checkpoints[0], None, None)


def said(loaded: LoadedCheckpoint, *texts: str) -> bool:
    unsaid = [text for text in texts if not any(text in note for note in loaded.notes)]
    assert not unsaid, (unsaid, loaded.notes)
    return True


# --- the step that was taken next


@pytest.mark.parametrize("family", ["Qwen3", pytest.param("GPT2", marks=pytest.mark.slow)])
def test_the_measured_step_is_the_one_that_the_trainer_took(family: str, made: Any, tmp_path: Path) -> None:
    checkpoint, after = made
    if family != "Qwen3":
        checkpoint, after = write_checkpoint(tmp_path / "run", family)
        write_completions(tmp_path / "run" / "completions" / "completions_00003.parquet", 3)
    loaded = load(checkpoint, tmp_path)
    own = loaded.objectives[0]
    assert own.label == "grpo" and own.optimizer_state == "saved"
    before = {name: p.detach().clone() for name, p in loaded.trainable.items()}
    with loaded.restored():
        take_steps(own, own.on_policy, 1, 2, lambda _: None)
        moved = {name: p.detach().clone() for name, p in loaded.trainable.items()}
    moments = read_moments(checkpoint / "optimizer.pt", loaded.policy.model).by_name
    for name, expected in after.items():
        # Some have no gradient but rounding, such as biases of keys, which Adam makes whole steps of.
        moving = moments[name]["exp_avg_sq"] > 1e-12
        step, measured = (expected - before[name])[moving], (moved[name] - before[name])[moving]
        assert step.abs().max() > 1e-4
        assert torch.allclose(measured, step, rtol=1e-3, atol=1e-6), name
    with loaded.restored():  # a fresh optimizer takes another step
        other = loaded.objectives[1]
        assert other.optimizer_state == "fresh"
        take_steps(other, other.on_policy, 1, 2, lambda _: None)
        name = "model.layers.0.self_attn.q_proj.weight" if family == "Qwen3" else "transformer.h.0.attn.c_attn.weight"
        assert not torch.allclose(loaded.trainable[name] - before[name], after[name] - before[name], rtol=0.1)


def test_the_command_measures_and_says_what_it_cannot_know(made: Any, cvxrl: Any, tmp_path: Path) -> None:
    checkpoint, _ = made
    page = tmp_path / "page.html"
    done = cvxrl("inspect-grads", checkpoint.parent, *QUICK, "--json", "--out", tmp_path / "out", "--html", page)
    assert done.code == 0, done.err
    record = json.loads(done.out)
    (snapshot,) = record["snapshots"]
    assert snapshot["step"] == 2 and snapshot["correct"] is None and snapshot["reward"] == sum(REWARDS) / len(REWARDS)
    update = snapshot["objectives"][0]["update"]
    assert update["optimizer"] == "saved" and update["learning_rate"] == 1e-2 and update["kl"] > 0
    for text in (
        "4 prompts x 4, which step 3 learned from; sampled by this checkpoint's policy",
        "all ratios start at 1",
        "rewards are the stored ones (check); task and grader are not known",
        "0 of 16 texts do not come back",
        "15 completions got one, 1 of 6 tokens or more count as cut off",
        "after 2 steps, told apart by their order (decayed: all but biases and norms)",
        "learning rate 0.01, as the optimizer's state has it",
        "advantages are the stored ones, which are those that `group` makes",
        "resemble their own gradient most, so that they are hardly exchanged",
    ):
        assert any(text in note for note in record["notes"]), (text, record["notes"])
        assert text.replace("'", "&#x27;") in page.read_text() or text in page.read_text()
    assert not list(checkpoint.parent.rglob("INSPECT.json"))


def test_without_an_optimizer_or_with_a_recipe_that_drops_it_the_step_is_a_fresh_one(
    fresh: Any, tmp_path: Path
) -> None:
    checkpoint = fresh()
    loaded = load(checkpoint, tmp_path, sets=["train.reset_optimizer=true"])
    assert loaded.objectives[0].optimizer_state == "fresh" and said(loaded, "train.reset_optimizer is on")
    (checkpoint / "optimizer.pt").unlink()
    loaded = load(checkpoint, tmp_path)
    assert loaded.objectives[0].optimizer_state == "fresh"
    assert said(loaded, "state is not in the checkpoint", "learning rate 0.01: as last logged")


# --- whose moments they are


def test_exchanged_groups_are_refused_by_their_shapes(fresh: Any, tmp_path: Path) -> None:
    checkpoint = fresh()
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    first, second = saved["param_groups"]
    first["params"], second["params"] = second["params"], first["params"]
    torch.save(saved, checkpoint / "optimizer.pt")
    with pytest.raises(UserError, match=r"entries, and the policy .* parameters") as refused:
        load(checkpoint, tmp_path)
    assert "train.reset_optimizer=true" in refused.value.problems[0].remedy


def test_one_entry_of_another_shape_is_refused(fresh: Any, tmp_path: Path) -> None:
    checkpoint = fresh()
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    saved["state"][3]["exp_avg"] = torch.zeros(3, 3)
    torch.save(saved, checkpoint / "optimizer.pt")
    with pytest.raises(UserError, match=r"entry 3 has shape .*\(3, 3\)"):
        load(checkpoint, tmp_path)


def test_exchanged_matrices_of_one_shape_are_noticed(made: Any, tmp_path: Path) -> None:
    loaded = load(made[0], tmp_path)
    own = loaded.objectives[0]
    own.loss.backward(own.on_policy)
    gradients = gradients_of(list(loaded.policy.model.named_parameters()))
    moments = read_moments(made[0] / "optimizer.pt", loaded.policy.model)
    hits, of = likeness(moments, gradients)
    assert of >= 8 and hits > 0.7 * of
    names = [name for name, p in loaded.trainable.items() if p.shape == (16, 16)]
    exchanged = {name: moments.by_name[other] for name, other in zip(names, names[1:] + names[:1], strict=True)}
    moments.by_name.update(exchanged)
    assert likeness(moments, gradients)[0] <= hits - len(names) // 2


def test_states_that_name_their_parameters_are_read_by_name(made: Any, fresh: Any, tmp_path: Path) -> None:
    checkpoint = fresh()
    model = load(checkpoint, tmp_path).policy.model
    by_order = read_moments(checkpoint / "optimizer.pt", model)
    names = {id(state): name for name, state in by_order.by_name.items()}
    saved = {"state": {f"module.{names[id(s)]}": s for s in by_order.by_name.values()}}
    saved["param_groups"] = [{"params": [*saved["state"]][::-1], "lr": 0.5}]
    torch.save(saved, checkpoint / "optimizer.pt")
    named = read_moments(checkpoint / "optimizer.pt", model)
    assert named.how == "by their names" and named.rate == 0.5
    assert all(torch.equal(s["exp_avg"], named.by_name[n]["exp_avg"]) for n, s in by_order.by_name.items())


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_nothing_of_a_pickle_is_run(fresh: Any, tmp_path: Path) -> None:
    checkpoint = fresh()
    torch.save(
        Arguments({"learning_rate": Bomb(tmp_path / "ran"), "beta": Bomb(tmp_path / "ran")}),
        checkpoint / "training_args.bin",
    )
    with pytest.raises(UserError, match="does not say its loss"):
        load(checkpoint, tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.save({"state": {0: Bomb(tmp_path / "ran")}, "param_groups": []}, checkpoint / "optimizer.pt")
    with pytest.raises(UserError, match="other things than tensors"):
        load(checkpoint, tmp_path, recipe=Path("math_grpo"))
    assert not (tmp_path / "ran").exists()


# --- which completions


def test_completions_are_those_of_the_checkpoints_own_policy_where_there_are_any(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    checkpoint, _ = write_checkpoint(folder)
    (found,) = find_foreign(str(folder))
    for step in (1, 2):
        write_completions(folder / "completions" / f"completions_{step:05d}.parquet", step)
    assert choose_file(found, None) == folder / "completions" / "completions_00002.parquet"
    assert said(load(checkpoint, tmp_path), "sampled by a policy 1 updates before this checkpoint, which is not known")
    write_completions(folder / "completions" / "completions_00003.parquet", 3)
    assert choose_file(found, None) == folder / "completions" / "completions_00003.parquet"
    (folder / "completions" / "completions_00003.parquet").unlink()
    write_checkpoint(folder, entry={"eval_reward": 0.5})
    (found,) = find_foreign(str(folder))
    assert found.evaluated(2) and choose_file(found, None) == folder / "completions" / "completions_00002.parquet"
    assert said(
        load(checkpoint, tmp_path), "the end of the evaluation at step 2", "sampled by this checkpoint's policy"
    )


def test_a_rollout_that_serves_several_steps_is_sampled_by_the_policy_before_the_first(
    fresh: Any, tmp_path: Path
) -> None:
    checkpoint, folder = fresh(num_iterations=2), tmp_path / "run"
    for step in (1, 4):
        write_completions(folder / "completions" / f"completions_{step:05d}.parquet", step)
    loaded = load(checkpoint, tmp_path)
    assert said(loaded, "completions_00003.parquet", "sampled by this checkpoint's policy")
    assert loaded.objectives[0].recipe.train.minibatches == 1  # all of it in each step; reuse is a part of its own


def test_rewards_are_weighted_sums_and_gaps_have_no_advantage(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    write_checkpoint(folder, settings={"reward_weights": [1.0, 0.5]}, entry={"rewards/form/mean": 1.0})
    form = [2.0] * 15 + [None]
    check = [*REWARDS[:15], None]
    file = write_completions(folder / "completions" / "completions_00003.parquet", 3, form=form, check=check)
    (found,) = find_foreign(str(folder))
    stored = read_completions(file, found)
    assert stored.functions == ("check", "form") and stored.weights == (1.0, 0.5)
    assert stored.rewards is not None and stored.rewards[0] == [2.0, 1.0, 1.0, 1.0]
    loaded = load(folder, tmp_path)
    assert said(loaded, "1 completions have no reward", "weights (1.0, 0.5)")
    assert loaded.rollouts.rewards[3][3] == pytest.approx((2 + 1 + 2) / 3)


def test_texts_that_do_not_come_back_are_counted(fresh: Any, tmp_path: Path) -> None:
    checkpoint = fresh()
    file = checkpoint.parent / "completions" / "completions_00003.parquet"
    write_completions(file, 3, completion=[*REPLIES[:14], "a7", "x"])
    assert said(load(checkpoint, tmp_path), "2 of 16 texts do not come back")


def test_groups_are_told_from_prompts_where_nothing_says_their_size(tmp_path: Path) -> None:
    file = write_completions(tmp_path / "completions_00009.parquet", 9)
    stored = read_completions(file, None)
    assert stored.samples == 4 and stored.prompts == list(PROMPTS)
    assert stored.first(2).completions == [list(REPLIES[:4]), list(REPLIES[4:8])]


def test_a_plain_policy_is_measured_on_named_completions(made: Any, fresh: Any, tmp_path: Path) -> None:
    checkpoint = fresh()
    for name in ("optimizer.pt", "trainer_state.json", "training_args.bin"):
        (checkpoint / name).unlink()
    file = checkpoint.parent / "completions" / "completions_00003.parquet"
    loaded = load(checkpoint, tmp_path, recipe=Path("math_grpo"), completions=file)
    assert loaded.source.step is None and loaded.objectives[0].optimizer_state == "fresh"
    assert said(loaded, "which policy sampled them is not known", "made of the rewards, by the recipe's `group`")
    assert len(loaded.rollouts.responses) == 16


# --- bad input

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "no such step": ({}, {"steps": (7,)}, ["--step", "choose from 2"]),
    "more prompts than stored": ({}, {"prompts": 5}, ["--prompts", "holds 4"]),
    "fewer samples": ({}, {"samples": 2}, ["--samples", "belong together"]),
    "a loss of no objective": ({"loss_type": "sapo"}, {}, ["sapo", "--recipe"]),
    "nothing to sample from": ({}, {"fresh": True}, ["names no task", "--recipe math_grpo"]),
    "several messages": ({}, {"completions": "messages.parquet"}, ["several messages"]),
    "no completions": ({}, {"completions": "text.parquet"}, ["--completions", "no completions to measure on"]),
    "neither rewards nor advantages": ({}, {"completions": "bare.parquet"}, ["neither rewards nor advantages"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input(name: str, fresh: Any, tmp_path: Path) -> None:
    made_with, options, expected = REFUSED[name]
    checkpoint = fresh(**made_with)
    turns = [[{"role": "assistant", "content": "1"}, {"role": "tool", "content": "2"}]] * 16
    write_completions(tmp_path / "messages.parquet", 3, completion=turns)
    write_completions(tmp_path / "bare.parquet", 3, check=None, advantage=None)
    (tmp_path / "text.parquet").write_text("no table")
    if "completions" in options:
        options = {"completions": tmp_path / options["completions"]}
    with pytest.raises(UserError) as refused:
        load(checkpoint, tmp_path, **options)
    told = str(refused.value)
    assert all(text in told for text in expected), told


# --- TRL itself


@pytest.mark.slow
def test_the_step_of_a_real_trainer_is_repeated(tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="trl is not installed (extra `trl`)")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source, _ = write_checkpoint(tmp_path / "source")
    tokenizer = AutoTokenizer.from_pretrained(source, padding_side="left")

    def digits(completions: list[str], **_: Any) -> list[float]:
        return [float(sum(c in "13579" for c in text)) for text in completions]

    args = trl.GRPOConfig(
        output_dir=str(tmp_path / "run"), use_cpu=True, bf16=False, report_to=[], disable_tqdm=True, max_steps=3,
        save_strategy="steps", save_steps=1, logging_steps=1, log_completions=True, num_completions_to_print=0,
        num_generations=4, per_device_train_batch_size=16, max_completion_length=8, learning_rate=3e-3,
        weight_decay=0.1, lr_scheduler_type="linear", beta=0.0, disable_dropout=True,
        generation_kwargs={"suppress_tokens": [0]},  # padding, which decoding drops
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS * 4])
    trl.GRPOTrainer(AutoModelForCausalLM.from_pretrained(source), digits, args, data, None, tokenizer).train()
    loaded = load(tmp_path / "run", tmp_path, steps=(2,))
    assert said(
        loaded, "sampled by this checkpoint's policy", "0 of 16 texts", "as the log's", "advantages are the stored"
    )
    own = loaded.objectives[0]
    before = {name: p.detach().clone() for name, p in loaded.trainable.items()}
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "checkpoint-3")
    with loaded.restored():
        take_steps(own, own.on_policy, 1, 2, lambda _: None)
        for name, p in after.named_parameters():
            step = p.detach() - before[name]
            assert torch.allclose(loaded.trainable[name].detach() - before[name], step, rtol=1e-2, atol=2e-6), name
