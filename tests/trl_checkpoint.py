"""A checkpoint and completions as TRL writes them, of a tiny policy, with every number known."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from helpers import new_model
from torch import Tensor

from cvxrl.policy.load import build_tokenizer

LIMIT, RATE, EPS = 6, 1e-2, 1e-4
PROMPTS = ("1+2?", "7+7?", "3+4?", "9+1?")
REPLIES = ("3", "4", "12", "777777", "14", "7", "41", "1", "7", "8", "7", "0", "10", "1", "10", "100")
REWARDS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0)


class Arguments:
    """Stands for a trainer's arguments."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        vars(self).update(settings)


SETTINGS: dict[str, Any] = {
    **{"seed": 3, "optim": "adamw_torch_fused", "learning_rate": RATE, "weight_decay": 0.1, "adam_beta1": 0.9},
    **{"adam_beta2": 0.99, "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "lr_scheduler_type": "constant"},
    **{"num_generations": 4, "max_completion_length": LIMIT, "temperature": 1.0, "num_iterations": 1},
    **{"steps_per_generation": 1, "gradient_accumulation_steps": 1, "loss_type": "dapo", "epsilon": 0.2},
    **{"epsilon_high": None, "beta": 0.0, "scale_rewards": "group", "importance_sampling_level": "token"},
    **{"reward_weights": None, "bf16": False},
}


def advantages(rewards: Sequence[float]) -> list[float]:
    """(R - mean) / (std + 1e-4) in groups of four, as GRPOTrainer has it."""
    grouped = torch.tensor(rewards).view(-1, 4)
    return ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + EPS)).flatten().tolist()


def write_completions(file: Path, step: int, **columns: Sequence[Any]) -> Path:
    """A table as `log_completions` writes it; columns replace its own, None leaves one out."""
    import pyarrow
    from pyarrow.parquet import write_table

    table: dict[str, Any] = {
        "step": [step] * len(REPLIES),
        "prompt": [prompt for prompt in PROMPTS for _ in range(4)],
        "completion": list(REPLIES),
        "check": list(REWARDS),
        "advantage": advantages(REWARDS),
        **columns,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_table(pyarrow.table({name: values for name, values in table.items() if values is not None}), file)
    return file


def write_checkpoint(
    folder: Path,
    family: str = "Qwen3",
    settings: Mapping[str, Any] | None = None,
    entry: Mapping[str, Any] | None = None,
) -> tuple[Path, dict[str, Tensor]]:
    """checkpoint-2 of a run in ``folder``, whose third step learned from what it sampled; and the weights after it.

    The optimizer is torch's, over the two groups that transformers makes; the loss is that of `loss_type: dapo`.
    """
    given = {**SETTINGS, **(settings or {})}
    tokenizer = build_tokenizer("0123456789+=?", 64)
    torch.manual_seed(0)
    size = dict(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, eos_token_id=1)
    size |= dict(num_key_value_heads=2, head_dim=8, intermediate_size=24, max_position_embeddings=64, pad_token_id=0)
    if family == "GPT2":
        size = dict(vocab_size=len(tokenizer), n_positions=64, n_embd=16, n_layer=2, n_head=2, eos_token_id=1)
    model = new_model(family, **size).eval()
    optimizer = trainers_optimizer(model, given)
    checkpoint = folder / "checkpoint-2"
    for step in (1, 2, 3):
        if step == 3:
            model.save_pretrained(checkpoint)
            tokenizer.save_pretrained(checkpoint)
            torch.save(optimizer.state_dict(), checkpoint / "optimizer.pt")
        _step(model, tokenizer, optimizer, flipped=step == 1)
    torch.save(Arguments(given), checkpoint / "training_args.bin")
    history = [{"step": s, "loss": 0.1, "learning_rate": RATE, "rewards/check/mean": 0.4} for s in (1, 2, 3)]
    history[1] |= dict(entry or {})
    state = {"global_step": 2, "max_steps": 3, "log_history": history}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    return checkpoint, {name: p.detach().clone() for name, p in model.named_parameters()}


def trainers_optimizer(model: Any, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    """As `Trainer.create_optimizer` makes it, by its own rule."""
    from transformers import Trainer

    decayed = Trainer.get_decay_parameter_names(None, model)
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in named if n in decayed], "weight_decay": settings["weight_decay"]},
        {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.99), eps=1e-8)


def _step(model: Any, tokenizer: Any, optimizer: torch.optim.Optimizer, *, flipped: bool) -> None:
    """-sum A log pi(a) / tokens, clipped at norm 1; ``flipped`` learns from other advantages."""
    values = advantages(REWARDS)
    values = values[1:] + values[:1] if flipped else values
    total, tokens = torch.zeros(()), 0
    for number, (reply, advantage) in enumerate(zip(REPLIES, values, strict=True)):
        prompt = tokenizer(PROMPTS[number // 4])["input_ids"]
        ids = tokenizer(reply, add_special_tokens=False)["input_ids"]
        ids = ids if len(ids) >= LIMIT else [*ids, tokenizer.eos_token_id]
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]
        total = total - advantage * logits.log_softmax(-1)[torch.arange(len(ids)), ids].sum()
        tokens += len(ids)
    (total / tokens).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
