"""Ways to spend less memory: each computes the same numbers as the plain way, and holds what it promises to hold."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_steps import gradient, largest_difference
from helpers import SHIPPED_POLICY, SilentSink, quick_if, tiny
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from cvxrl.engine import memory
from cvxrl.engine.micro_batches import Limit, by_length, whole_groups
from cvxrl.engine.optimizer import build_optimizer
from cvxrl.engine.plan import describe
from cvxrl.engine.session import run_training
from cvxrl.engine.sizes import shape_of
from cvxrl.engine.trainer import Trainer
from cvxrl.errors import UserError
from cvxrl.recipe.training import AdamwSpec, OptimSpec, SgdSpec
from cvxrl.runs.directory import RunDir

FREE = "optim.max_grad_norm=null"
PROMPTS = [[1] * 3, [1] * 3, [1] * 9, [1] * 9]
RESPONSES = [[2] * 5, [2] * 1, [2] * 2, [2] * 6]


def test_sequences_are_packed_by_length_up_to_the_budget() -> None:
    def packed(tokens: int) -> list[list[int]]:
        return list(by_length(PROMPTS, RESPONSES, Limit(tokens=tokens)))

    assert packed(16) == [[1, 0], [2], [3]]  # 2 x 8; 11; 15
    assert packed(30) == [[1, 0], [2, 3]]  # three would be 3 x 11
    assert packed(60) == [[1, 0, 2, 3]]
    with pytest.raises(UserError, match="a sequence of 15 tokens is above the budget of 14") as caught:
        packed(14)
    assert caught.value.problems[0].key == "train.micro_batch_tokens"


def test_groups_stay_together_in_the_budget() -> None:
    assert list(whole_groups(PROMPTS, RESPONSES, [0, 0, 1, 1], Limit(tokens=30))) == [[0, 1], [2, 3]]
    assert list(whole_groups(PROMPTS, RESPONSES, [0, 0, 1, 1], Limit(sequences=1))) == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match="a group of 2 x 15 tokens"):
        list(whole_groups(PROMPTS, RESPONSES, [0, 0, 1, 1], Limit(tokens=29)))


@pytest.mark.parametrize("name", quick_if("math_grpo".__eq__, ["math_grpo", "math_lco_kld", "math_gspo", "math_ppo"]))
def test_a_token_budget_leaves_the_gradient_alone(name: str) -> None:
    whole = tiny(name, FREE)
    trainer = Trainer.build(whole)
    sequences = trainer.collector.collect(1).sequences
    reference = gradient(whole, sequences)
    for tokens in (200, 400):
        assert (
            largest_difference(reference, gradient(tiny(name, FREE, f"train.micro_batch_tokens={tokens}"), sequences))
            < 2e-5
        )


def test_a_prompt_above_the_budget_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    # 24 response tokens may fit into 26, but no prompt of this task has two tokens.
    recipe = tiny("math_grpo", "train.micro_batch_tokens=26")
    with pytest.raises(UserError, match="above the budget"):
        run_training(recipe, RunDir.of(tmp_path, recipe), SilentSink(), "new")
    assert not list(tmp_path.iterdir())


def test_checkpointing_leaves_the_gradient_alone_and_keeps_less() -> None:
    plain, checkpointing = tiny("math_grpo", FREE), tiny("math_grpo", FREE, "train.gradient_checkpointing=true")
    sequences = Trainer.build(plain).collector.collect(1).sequences
    with counting_saved() as many:
        reference = gradient(plain, sequences)
    with counting_saved() as few:
        found = gradient(checkpointing, sequences)
    assert largest_difference(reference, found) < 2e-5
    assert sum(few) < 0.5 * sum(many)


@contextmanager
def counting_saved() -> Iterator[list[int]]:
    """Sizes of the tensors that autograd keeps for the backward pass."""
    sizes: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


class Rows(TorchDispatchMode):
    """Remembers the most rows of any tensor whose last dimension is the vocabulary."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        self.vocab, self.most = vocab, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.ndim >= 2 and tensor.shape[-1] == self.vocab:
                self.most = max(self.most, tensor.numel() // self.vocab)
        return out


def updated(name: str, *overrides: str) -> tuple[dict[str, float], dict[str, Tensor], int]:
    """Metrics and parameters after one step's updates on fixed data, and the most rows of logits on the way."""
    # Steps as large as the gradient is: Adam would make a whole step of a difference in the last bit.
    trainer = Trainer.build(tiny(name, "optim.kind=sgd", "optim.lr=0.1", *overrides))
    sequences = trainer.collector.collect(1).sequences
    with Rows(trainer.policy.model.config.vocab_size) as rows:
        metrics = trainer.updater.update(sequences, 1)
    return metrics, {k: v.detach() for k, v in trainer.policy.model.named_parameters()}, rows.most


KL = ("regularizer.kl_coefficient=0.1", "regularizer.entropy_coefficient=0.01")
TWICE = ("train.inner_epochs=2", "train.minibatches=2")
HIDDEN = 128  # rows of the output matrix, transposed; every step of these has more tokens
CASES = [
    ("math_lco_kld", ()),
    ("math_lco_kld", TWICE),
    ("math_lco_mse", TWICE),
    ("math_grpo", KL),
    ("math_grpo", TWICE),
    ("math_ppo", ()),
    ("math_gspo", ("train.micro_batch=12",)),
    ("math_gvpo", TWICE),
    ("math_lora", KL),
    ("base_sft", ("rollout.prompts=16",)),
    ("pref_dpo", ("rollout.prompts=16",)),
]


# Of tokens twice over, with a critic, of groups, and with an adapter.
QUICK = [CASES[i] for i in (1, 5, 6, 8)]


@pytest.mark.parametrize(("name", "overrides"), quick_if(lambda *case: case in QUICK, CASES))
def test_a_chunked_loss_trains_as_full_logits_do(name: str, overrides: tuple[str, ...]) -> None:
    full, parameters, rows = updated(name, *overrides)
    chunked, found, few = updated(name, *overrides, "train.loss=chunked", "train.chunk_tokens=64")
    assert few <= HIDDEN < rows
    assert full.keys() == chunked.keys()
    for key, value in full.items():
        if key == "preference/accuracy":
            continue  # a sign, of margins that are 0 but for rounding before the first step
        assert chunked[key] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    start = Trainer.build(tiny(name, *overrides)).policy.model.state_dict()
    moved = max(float((parameters[k] - start[k]).abs().max()) for k in found)
    apart = max(float((found[k] - parameters[k]).abs().max()) for k in found)
    assert 0 < apart < 1e-3 * moved


def test_no_pass_of_a_chunked_run_forms_all_logits(tmp_path: Path) -> None:
    chunked = ("train.loss=chunked", "train.chunk_tokens=16", "train.steps=1", "eval.every=0")
    recipe = tiny("math_lco_kld", *TWICE, *chunked)
    with Rows(15) as rows:
        run_training(recipe, RunDir.of(tmp_path, recipe), SilentSink(), "new")
    assert 0 < rows.most <= HIDDEN  # sampling takes 16 rows at a time


def test_a_step_too_small_for_bf16_reaches_the_master_weights() -> None:
    def weights(masters: bool) -> Tensor:
        layer = nn.Linear(4, 4, bias=False, dtype=torch.bfloat16)
        nn.init.ones_(layer.weight)
        optimizer = build_optimizer([layer], SgdSpec(lr=1e-3, master_weights=masters))
        for _ in range(10):
            optimizer.zero_grad()
            layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
            optimizer.step()
        return layer.weight.detach().float()

    assert torch.equal(weights(False), torch.ones(4, 4))
    torch.testing.assert_close(weights(True), torch.full((4, 4), 0.99), rtol=0, atol=2**-8)


OPTIMIZERS = [
    pytest.param(
        ("optim.kind=sgd", "optim.lr=0.1", "optim.momentum=0.9", "optim.nesterov=true"), marks=pytest.mark.slow
    ),
    ("optim.kind=adafactor", "optim.lr=1e-2"),
    # bfloat16 is slow on many processors.
    *(
        pytest.param(("model.dtype=bfloat16", "optim.master_weights=true", *optimizer), marks=pytest.mark.slow)
        for optimizer in (("optim.lr=1e-4",), ("optim.kind=sgd", "optim.lr=1e-3", "optim.momentum=0.9"))
    ),
]


@pytest.mark.parametrize("overrides", OPTIMIZERS)
def test_every_optimizer_resumes_bit_identically(overrides: tuple[str, ...], tmp_path: Path) -> None:
    recipe = tiny("math_grpo", *overrides, "train.steps=4", "checkpoint.every=2", "checkpoint.keep=9", "eval.every=0")
    straight = RunDir.of(tmp_path / "a", recipe)
    run_training(recipe, straight, SilentSink(), "new")
    again = RunDir.of(tmp_path / "b", recipe)
    shutil.copytree(straight.path, again.path)
    shutil.rmtree(again.checkpoints / "step-000004")
    shutil.rmtree(again.policy)
    record = again.read_record().model_copy(update={"status": "interrupted"})
    again.record.write_text(record.model_dump_json())
    run_training(recipe, again, SilentSink(), "resume")
    one, two = ((d.policy / "model.safetensors").read_bytes() for d in (straight, again))
    assert one == two
    start = Trainer.build(recipe).policy.model.state_dict()
    assert any(not torch.equal(v, start[k]) for k, v in trained(recipe, straight).items())


def trained(recipe: Any, run: RunDir) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(run.policy / "model.safetensors")


def test_adam_without_masters_would_lose_them() -> None:
    """Negative control of the resume test: the copies, which differ from the weights, are in the state."""
    layer = nn.Linear(4, 4, dtype=torch.bfloat16)
    spec: OptimSpec = AdamwSpec(lr=1e-4, master_weights=True)
    optimizer = build_optimizer([layer], spec)
    layer(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    saved = optimizer.state_dict()["masters"][0]
    assert not torch.equal(saved, layer.weight.detach().float())


def test_activations_are_counted_as_autograd_keeps_them() -> None:
    prompts, samples, new_tokens = 2, 4, 18
    sizes = (f"rollout.prompts={prompts}", f"rollout.samples={samples}", f"rollout.max_new_tokens={new_tokens}")
    recipe = tiny("math_grpo", *sizes)
    policy = Trainer.build(recipe).policy
    weights = {p.untyped_storage().data_ptr() for p in policy.model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    longest = max(memory.Lengths.of(recipe).prompts)
    rows = [[5 + i] * longest for i in range(prompts) for _ in range(samples)]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden_NH = policy.response_hidden(rows, [[7] * new_tokens] * len(rows))
    assert hidden_NH.requires_grad
    shape = shape_of(recipe.model)
    assert shape is not None
    lengths = memory.Lengths([longest] * len(rows), [new_tokens] * len(rows))
    counted = memory.activations(recipe, shape, memory.Pass.of(recipe, lengths))
    seen = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    assert counted == pytest.approx(seen, rel=0.1)


def test_a_step_too_large_to_look_at_is_planned_in_proportion() -> None:
    def update(prompts: int) -> int:
        recipe = tiny("math_grpo", "rollout.samples=8", f"rollout.prompts={prompts}")
        shape = shape_of(recipe.model)
        assert shape is not None
        return memory.footprint(recipe, shape).update

    assert update(2**31) / update(1024) == pytest.approx(2**21, rel=1e-3)


def test_the_plan_follows_what_is_to_save_memory() -> None:
    def peak(*overrides: str) -> int:
        recipe = tiny("math_lco_kld", SHIPPED_POLICY, "rollout.prompts=256", "eval.every=0", *overrides)
        return describe(recipe).memory_bytes or 0

    whole = peak()
    assert peak("train.micro_batch_tokens=1024", "rollout.batch=8") < 0.2 * whole
    assert peak("train.gradient_checkpointing=true") < 0.7 * whole
    assert peak("rollout.prompts=512") > 1.8 * whole
    small = ("rollout.prompts=2", "rollout.samples=2")
    moments = 2 * 4 * 856_000  # of the parameters of the policy that ships
    assert peak(*small) - peak(*small, "optim.kind=sgd") == pytest.approx(moments, rel=0.01)
    assert peak(*small, "model.dtype=bfloat16", "optim.master_weights=true") > peak(*small, "model.dtype=bfloat16")
