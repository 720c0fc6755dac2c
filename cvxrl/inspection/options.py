"""What the user asked for. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Part = Literal["logits", "gradients", "bands", "update", "sharpness", "curvature"]
PARTS: tuple[Part, ...] = ("logits", "gradients", "bands", "update", "sharpness", "curvature")
# What a look at every checkpoint measures unless told otherwise: the others cost many passes each.
QUICK_PARTS: tuple[Part, ...] = ("logits", "gradients", "update", "sharpness")


@dataclass(frozen=True)
class Options:
    """Options of `cvxrl inspect-grads`.

    Attributes:
        path: run directory, checkpoint, or Hugging Face directory or id.
        recipe: recipe file, where `path` belongs to no run, or to read a run under another one.
        sets: `key=value` texts laid over the recipe.
        objectives: kinds or recipe files; None takes the run's own beside the usual ones.
        steps: checkpoints to look at; None takes the last one.
        all_steps: look at every checkpoint.
        prompts, samples: size of the frozen rollout; None takes the recipe's.
        minibatches: equal parts that the rollout is cut into for the noise scale; None takes at most 8.
        drift: optimizer steps of the run's own objective after which logit space is looked at again.
        parts: what to measure; None takes everything that the model's size allows.
        lanczos: Hessian-vector products per objective.
        probes: random vectors for the trace.
        device: where to run.
        out: folder of rollouts and results; None takes `inspect/` in the run.
        fresh: sample again even if frozen rollouts are there.
    """

    path: str
    recipe: Path | None = None
    sets: list[str] = field(default_factory=list)
    objectives: list[str] | None = None
    steps: list[int] | None = None
    all_steps: bool = False
    prompts: int | None = None
    samples: int | None = None
    minibatches: int | None = None
    drift: int = 4
    parts: tuple[Part, ...] | None = None
    lanczos: int = 20
    probes: int = 10
    device: str = "auto"
    out: Path | None = None
    fresh: bool = False
