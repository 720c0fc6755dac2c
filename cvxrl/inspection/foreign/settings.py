"""A trainer's settings as a recipe: loss, advantage, optimizer and the rollout's shape. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cvxrl.errors import Problem, UserError
from cvxrl.inspection.foreign.checkpoint import ForeignCheckpoint
from cvxrl.inspection.foreign.completions import StoredCompletions
from cvxrl.recipe.load import check
from cvxrl.recipe.merge import Layers, override
from cvxrl.recipe.schema import Recipe

# Stored completions are neither asked for nor graded again; a recipe has a task all the same.
_NO_TASK = {"source": {"kind": "carrying-sums"}}
_REDUCTION = {
    **{"grpo": "sequence-mean", "bnpo": "token-mean", "dapo": "token-mean", "dr_grpo": "constant"},
    "cispo": "token-mean",
}
_USUAL_RATE = 1e-6  # of GRPOConfig, where nothing says another


def recipe_of(checkpoint: ForeignCheckpoint, stored: StoredCompletions, sets: Sequence[str]) -> Recipe:
    """The recipe that a checkpoint's settings amount to, with what `--set` lays over it.

    Raises:
        UserError: they say no loss, or one that no objective is; or an override is wrong.
    """
    settings = checkpoint.settings
    objective, reduction = _objective(checkpoint)
    longest = settings.get("max_completion_length")
    layers = Layers(Recipe)
    values: dict[str, Any] = {
        "name": _name(checkpoint.path),
        "seed": settings.get("seed") or 0,
        "model": {"path": str(checkpoint.path)},
        "task": _NO_TASK,
        "rollout": {
            **{"prompts": len(stored.prompts), "samples": stored.samples},
            **{"max_new_tokens": longest or 1024, "temperature": settings.get("temperature") or 1.0},
        },
        "objective": objective,
        "advantage": _advantage(settings, stored),
        "reduction": reduction,
        "optim": _optimizer(checkpoint),
        "train": {"steps": max(1, checkpoint.planned or checkpoint.step), **_uses(settings)},
        "eval": {"every": 0},
    }
    layers.add(values, str(checkpoint.path))
    problems = override(layers, sets)
    if problems:
        raise UserError(*problems)
    return check(Recipe, layers)


def _name(path: Path) -> str:
    folder = path.absolute()
    name = folder.parent.name if folder.name.startswith("checkpoint-") else folder.name
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in name).strip("-.") or "checkpoint"


def _objective(checkpoint: ForeignCheckpoint) -> tuple[Any, str]:
    """Section and reduction."""
    settings = checkpoint.settings
    if settings.get("objective") is not None:
        return settings["objective"], settings.get("reduction") or "token-mean"
    kind = settings.get("loss_type")
    level, low = settings.get("importance_sampling_level") or "token", settings.get("epsilon")
    high = settings.get("epsilon_high")
    clip = {"clip_low": low, "clip_high": low if high is None else high}
    if kind == "cispo" and level == "token" and high is not None:
        return {"kind": "cispo", "ratio_max": high}, _REDUCTION[kind]
    if kind in _REDUCTION and kind != "cispo" and low is not None:
        return {"kind": "gspo" if level == "sequence" else "grpo", **clip}, _REDUCTION[kind]
    known = "does not say its loss" if kind is None else f"has the loss `{kind}`, which is none of the objectives here"
    remedy = "name a recipe whose objective it is looked at under, e.g. --recipe math_grpo"
    raise UserError(Problem(f"the checkpoint {known}", "--recipe", str(checkpoint.path), remedy))


def _advantage(settings: dict[str, Any], stored: StoredCompletions) -> Any:
    """How rewards become advantages where the stored ones are not at hand."""
    if settings.get("advantage") is not None:
        return settings["advantage"]
    if stored.samples == 1:
        return {"kind": "reward"}
    return {"kind": "group" if settings.get("scale_rewards") in (True, "group", None) else "group-centered"}


def _uses(settings: dict[str, Any]) -> dict[str, int]:
    """How often a rollout is used."""
    batches, accumulated = settings.get("steps_per_generation") or 1, settings.get("gradient_accumulation_steps") or 1
    return {"inner_epochs": settings.get("num_iterations") or 1, "minibatches": max(1, batches // accumulated)}


def _optimizer(checkpoint: ForeignCheckpoint) -> dict[str, Any]:
    settings = checkpoint.settings
    read = {
        "lr": settings.get("learning_rate") or _USUAL_RATE,
        "weight_decay": settings.get("weight_decay") or 0.0,
        "max_grad_norm": settings.get("max_grad_norm") or None,
    }
    if str(settings.get("optim")) == "sgd":
        return {"kind": "sgd", **read}
    betas = [settings.get("adam_beta1"), settings.get("adam_beta2")]
    known = {"betas": betas} if None not in betas else {}
    return {"kind": "adamw", **read, **known, "eps": settings.get("adam_epsilon") or 1e-8}


def not_followed(checkpoint: ForeignCheckpoint) -> Iterator[str]:
    """What the settings ask for and is not computed here, a phrase each."""
    settings = checkpoint.settings
    for name, usual, what in (
        ("beta", 0.0, "the KL to a reference policy, which is not in the checkpoint"),
        ("entropy_coef", 0.0, "an entropy bonus"),
        ("delta", None, "an upper clip of the ratio"),
        ("top_entropy_quantile", 1.0, "learning from the tokens of high entropy alone"),
        ("off_policy_mask_threshold", None, "masking of completions that are off-policy"),
        ("mask_truncated_completions", False, "leaving out truncated completions"),
        ("use_vllm", False, "importance weights of vLLM's samples"),
        ("bf16", False, "bf16 autocast (it is measured in fp32)"),
        ("fp16", False, "fp16 autocast (it is measured in fp32)"),
        ("top_p", 1.0, "a truncated sampling distribution"),
        ("top_k", 0, "a truncated sampling distribution"),
        ("min_p", None, "a truncated sampling distribution"),
        ("repetition_penalty", 1.0, "a repetition penalty while sampling"),
    ):
        if settings.get(name, usual) not in (usual, None):
            yield f"{name}={settings[name]}: {what}"


def next_rate(checkpoint: ForeignCheckpoint, saved: float | None) -> tuple[float | None, str]:
    """Learning rate of the next optimizer step, and where it is known from.

    Args:
        checkpoint: its last logged rate is taken where there is no other.
        saved: that of the optimizer's state, which is the next step's.
    """
    schedule = checkpoint.settings.get("lr_scheduler_type")
    beyond = (
        f"; its schedule ({schedule or 'not known'}) is not followed beyond one step" if schedule != "constant" else ""
    )
    if saved:
        return saved, f"learning rate {saved:g}, as the optimizer's state has it for the next step{beyond}"
    last = checkpoint.logged(checkpoint.step, "learning_rate")
    if last:
        ended = "the schedule has ended at 0, so that of the last step" if saved == 0 else "as last logged"
        return last, f"learning rate {last:g}: {ended}{beyond}"
    return None, f"learning rate of the next step not known: that of the settings or the recipe{beyond}"
