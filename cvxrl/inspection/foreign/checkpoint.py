"""Checkpoints of transformers' trainers, TRL's among them: what each says of itself. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from cvxrl.comparison.foreign.log import refuse
from cvxrl.comparison.foreign.pickled import plain_settings
from cvxrl.runs.directory import RunDir

_STATE, _ARGUMENTS = "trainer_state.json", "training_args.bin"
# One file for all parameters; FSDP's has another ending. What DeepSpeed and sharded FSDP write is left alone.
_OPTIMIZERS = ("optimizer.pt", "optimizer.bin")
COMPLETIONS = "completions"
# What is read of a trainer's settings, by what each may be; None too.
_SETTINGS: dict[tuple[type, ...], tuple[str, ...]] = {
    (int, float): (
        *("seed", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm"),
        *("bf16", "fp16", "num_generations", "num_generations_eval", "max_completion_length", "temperature", "top_p"),
        *("top_k", "min_p", "repetition_penalty", "num_iterations", "steps_per_generation", "use_vllm", "delta"),
        *("gradient_accumulation_steps", "epsilon", "epsilon_high", "beta", "mask_truncated_completions"),
        *("top_entropy_quantile", "entropy_coef", "off_policy_mask_threshold"),
    ),
    (str, bool): ("optim", "lr_scheduler_type", "loss_type", "scale_rewards", "importance_sampling_level", "reduction"),
    (list,): ("reward_weights",),
    (dict,): ("chat_template_kwargs",),
    (dict, str): ("objective", "advantage"),  # of an LCOTrainer
}


@dataclass(frozen=True)
class ForeignCheckpoint:
    """A folder that a trainer of transformers saved.

    Attributes:
        path: holds weights and tokenizer.
        step: optimizer steps so far.
        planned: how many there were to be, or None.
        history: what the run logged, as far as its newest state has it; entries hold their `step`.
    """

    path: Path
    step: int
    planned: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Plain settings of the trainer, read without unpickling; none where there is no such file."""
        for folder in (self.path, self.path.parent):
            try:
                found = plain_settings(folder / _ARGUMENTS, [name for names in _SETTINGS.values() for name in names])
            except ValueError:
                continue
            kind = {name: kinds for kinds, names in _SETTINGS.items() for name in names}
            return {name: value for name, value in found.items() if value is None or isinstance(value, kind[name])}
        return {}

    @property
    def optimizer(self) -> Path | None:
        """File of the optimizer's state."""
        return next((self.path / name for name in _OPTIMIZERS if (self.path / name).is_file()), None)

    @property
    def completions(self) -> Path:
        """Where TRL keeps what was sampled (`log_completions`), whether or not it did."""
        return self.path.parent / COMPLETIONS

    @property
    def per_rollout(self) -> int | None:
        """Optimizer steps on each rollout; None where the settings do not say it."""
        found = 1
        for key in ("num_iterations", "steps_per_generation"):
            count = self.settings.get(key)
            if not isinstance(count, int) or count < 1:
                return None
            found *= count
        accumulated = self.settings.get("gradient_accumulation_steps")
        return max(1, found // accumulated) if isinstance(accumulated, int) and accumulated > 0 else None

    def logged(self, step: int, key: str) -> float | None:
        """What was logged under a name at a step."""
        found = [entry[key] for entry in self.history if entry.get("step") == step and key in entry]
        return float(found[-1]) if found and isinstance(found[-1], int | float) else None

    def evaluated(self, step: int) -> bool:
        """Whether an evaluation was logged at a step, after which TRL writes that step's completions once more."""
        return any(key.startswith("eval_") for e in self.history if e.get("step") == step for key in e)


def find_foreign(given: str) -> list[ForeignCheckpoint]:
    """The checkpoints that a path names, in the order of training: itself, or those inside an output folder.

    Raises:
        UserError: a trainer's state is damaged.
    """
    folder = Path(given).expanduser()
    if not folder.is_dir() or RunDir(folder).recipe.is_file() or RunDir(folder).record.is_file():
        return []
    if _is_checkpoint(folder) and folder.parent.name != "checkpoints":
        return [_read(folder)]
    inside = [path for path in folder.glob("checkpoint-*") if _is_checkpoint(path)]
    return sorted(map(_read, inside), key=lambda checkpoint: checkpoint.step)


def _is_checkpoint(folder: Path) -> bool:
    return (folder / _STATE).is_file() or any((folder / name).is_file() for name in _OPTIMIZERS)


def _read(folder: Path) -> ForeignCheckpoint:
    file = folder / _STATE
    number = folder.name.rpartition("-")[2]
    if not file.is_file():
        return ForeignCheckpoint(folder, int(number) if number.isdecimal() else 0)
    step, planned, own = _state(file)
    # What a checkpoint sampled is logged at the next step, which only a later state holds.
    later = [_state(state) for state in folder.parent.glob(f"checkpoint-*/{_STATE}") if state != file]
    history = max([(step, own), *((at, entries) for at, _, entries in later)], key=lambda found: found[0])[1]
    return ForeignCheckpoint(folder, step, planned, history)


def _state(file: Path) -> tuple[int, int | None, list[dict[str, Any]]]:
    """Steps done, steps planned, and what was logged."""
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        refuse(file, f"cannot be read: {error}", "restore the file, or remove it")
    step = state.get("global_step") if isinstance(state, Mapping) else None
    if not isinstance(step, int):
        refuse(file, "is no state of a trainer: it has no `global_step`", "restore the file, or remove it")
    history, planned = state.get("log_history"), state.get("max_steps")
    entries = [entry for entry in history if isinstance(entry, dict)] if isinstance(history, list) else []
    return step, planned if isinstance(planned, int) and planned > 0 else None, entries
