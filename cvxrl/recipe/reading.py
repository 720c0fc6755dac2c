"""What `reading: authors-code` stands for, spelled out in recipe fields, and what a plan says of it.

The facts are those of docs/method.md, section 6: two families of trainers, one that learns from a rule's rewards and
one that learns from a preference-trained verifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cvxrl.recipe.schema import Recipe

AUTHORS_CODE = "authors-code"
DENSE = ("dense-logprob", "dense-dpo")

_ADAM: dict[str, Any] = {
    "kind": "adamw",
    "betas": [0.9, 0.999],
    "eps": 1e-8,
    "weight_decay": 0.0,
    "max_grad_norm": None,
    "schedule": "constant",
    "warmup_steps": 0,
}
_COMMON: dict[str, Any] = {
    "reduction": "token-mean",
    "regularizer": {"kl_coefficient": 0.0, "entropy_coefficient": 0.0},
    "rollout": {"temperature": 1.0},
    "train": {"reset_optimizer": True, "inner_epochs": 1},
}
_PAPERS_TILT: dict[str, Any] = {"tilt": "exponential", "linear_margin": 1e-4, "shift": "none"}
_TARGET = {"lco-kld": "frozen", "lco-mse": "moving", "lco-lch": "moving"}
_TOP_FIVE: dict[str, Any] = {"kind": "top-k-fill", "k": 5, "fill": -100.0, "half": True}


def preset(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that the reading of ``values`` sets, where the layer that names the reading does not set them itself.

    Args:
        values: the merged recipe, that layer included.

    Returns:
        A mapping to lay below that layer and above everything it extends; empty for `reading: paper`.
    """
    kind = _section(values, "objective").get("kind")
    if values.get("reading") != AUTHORS_CODE or not isinstance(kind, str) or kind not in _TARGET:
        return {}
    optim, advantage = _section(values, "optim"), _section(values, "advantage").get("kind")
    # Another kind of optimizer would be replaced whole, and the learning rate is the recipe's.
    fields = {**_COMMON, "optim": {**_ADAM, **({"lr": optim["lr"]} if "lr" in optim else {})}}
    objective = {"kind": kind, **_PAPERS_TILT, "target": _TARGET[kind]}
    if advantage in DENSE:
        fields["advantage"] = {"kind": advantage, "k": 5, "center": kind != "lco-kld"}
        fields["objective"] = {**objective, "negative_beta_scale": 1.0}
        if kind == "lco-kld":
            fields["objective"]["support"] = {"kind": "exact"}
        return fields
    fields["advantage"] = {"kind": "reward"}
    fields["objective"] = {**objective, "negative_beta_scale": 100.0}
    if kind == "lco-kld":
        fields["objective"]["support"] = _TOP_FIVE
    if _section(values, "task", "reward").get("kind") != "callable":
        fields["task"] = {"reward": {"correct": 1.0, "incorrect": -1.0}}
    return fields


def departures(recipe: Recipe) -> list[tuple[str, Any, Any]]:
    """Fields in which a recipe that says `authors-code` differs from that code: key, the recipe's value, the code's."""
    values = recipe.model_dump(mode="json")
    have = dict(_leaves(values))
    return [(key, have.get(key), theirs) for key, theirs in _leaves(preset(values)) if have.get(key) != theirs]


def notes(recipe: Recipe) -> list[str]:
    """What a plan and the head of a run say of the reading, and of fields whose effect is not what one would expect."""
    said = []
    if recipe.reading == AUTHORS_CODE:
        other = [f"{key} {_plain(ours)} (theirs: {_plain(theirs)})" for key, ours, theirs in departures(recipe)]
        but = f", but for {', '.join(other)}" if other else ""
        said.append(
            f"reading authors-code{but}; beta and optim.lr are this recipe's; docs/method.md, section 6, says what "
            "else that code does"
        )
    steps = recipe.train.inner_epochs * recipe.train.minibatches
    if recipe.train.reset_optimizer and recipe.optim.kind == "adamw" and steps == 1:
        said.append(
            "train.reset_optimizer with one optimizer step per rollout: every step is Adam's first, which moves each "
            "weight by the learning rate whatever the size of its gradient (sign descent); the authors' code takes a "
            f"step per sequence, which would be train.minibatches {recipe.sequences_per_step}"
        )
    if recipe.rollout.lag:
        said.append(
            f"rollout.lag {recipe.rollout.lag}: step 1 samples {1 + recipe.rollout.lag} rollouts; sampled and still "
            f"waiting at the end: {recipe.rollout.lag}"
        )
    noise = recipe.task.reward.noise
    if noise.kind != "none":
        what = {"flip": "are exchanged with", "coin": "are a coin's, `correct` with"}[noise.kind]
        said.append(
            f"task.reward.noise: training rewards {what} probability {noise.probability:g}; evaluations are not"
        )
    reward, scale = recipe.task.reward, getattr(recipe.objective, "negative_beta_scale", 1.0)
    if scale != 1.0 and recipe.advantage.kind == "reward" and getattr(reward, "incorrect", -1.0) >= 0:
        said.append(
            f"objective.negative_beta_scale {scale:g} has no effect: rewards of {reward.correct:g} and "  # type: ignore[union-attr]
            f"{reward.incorrect:g} as advantages are never negative"  # type: ignore[union-attr]
        )
    return said


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _section(values: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    found: Any = values
    for part in path:
        found = found.get(part, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, Mapping) else {}
