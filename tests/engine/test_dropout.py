"""What a policy's configuration leaves to chance is off in the training pass, by whatever name a family has it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny
from tiny_models import save_family, tiny_family
from torch import Tensor

from cvxrl.engine.trainer import Trainer
from cvxrl.engine.update import training_mode
from cvxrl.policy.adapter import add_adapter
from cvxrl.recipe.model import LoraSpec

MARGIN = "preference/margin"
IDS = torch.tensor([[5, 6, 7, 9, 11, 20, 33, 8]])
# Dropout of attention, residuals, embeddings and layers; as modules, as numbers of a module, read from the
# configuration in the pass; and noise on routers.
KINDS: dict[str, dict[str, Any]] = {
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "gpt_neox": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "llama": {"attention_dropout": 0.5},
    "xglm": {"dropout": 0.5, "activation_dropout": 0.5, "layerdrop": 0.5},
    "mixtral": {"router_jitter_noise": 0.5},
}


def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found.detach()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_training_pass_leaves_nothing_to_chance(kind: str, checkpointing: bool) -> None:
    model = tiny_family(kind, **KINDS[kind])
    still = logits(model)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        with training_mode(model, dropout=False):
            assert any(m.training and m.gradient_checkpointing for m in model.modules() if m is not model)
    with training_mode(model, dropout=False):
        assert logits(model).equal(still)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_turns_it_on(kind: str) -> None:
    model = tiny_family(kind, **KINDS[kind])
    still = logits(model)
    with training_mode(model, dropout=True):
        assert not logits(model).equal(still)
    assert logits(model).equal(still)


def test_an_adapter_keeps_its_own() -> None:
    model = tiny_family("gpt2", **KINDS["gpt2"])
    add_adapter(model, LoraSpec(rank=2, dropout=0.5), 0)
    fresh = logits(model)
    with training_mode(model, dropout=False):
        assert logits(model).equal(fresh)  # B is zero
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1
        one, two = logits(model), logits(model)
    assert not one.equal(two)


@pytest.mark.parametrize(("recipe", "metric", "start"), [("math_grpo", "grpo/ratio", 1), ("pref_dpo", MARGIN, 0)])
def test_ratios_begin_at_one_and_margins_at_zero(recipe: str, metric: str, start: float, tmp_path: Path) -> None:
    policy = save_family("gpt2", tmp_path)  # its configuration drops a tenth of everything
    changes = [
        f"model.path={policy}",
        "eval.every=0",
        "rollout.max_new_tokens=8",
        "train.minibatches=2",
        "optim.lr=1e-9",
    ]
    found = []
    for dropout in ("false", "true"):
        trainer = Trainer.build(tiny(recipe, *changes, f"model.dropout={dropout}", "optim.lr=1e-9"))
        found.append(trainer.updater.update(trainer.collector.collect(1).sequences, 1)[metric])
    assert abs(found[0] - start) < 1e-4 < 1e-3 < abs(found[1] - start)
