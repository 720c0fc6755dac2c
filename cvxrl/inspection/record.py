"""INSPECT.json: what was looked at and every number. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from cvxrl.errors import Problem, UserError
from cvxrl.inspection.metrics import CurvatureMetrics, GradientMetrics, LogitMetrics, Strict
from cvxrl.inspection.step_metrics import DirectionMetrics, ReuseMetrics, SharpnessMetrics, UpdateMetrics
from cvxrl.runs.provenance import Provenance

SCHEMA_VERSION = 1


class ObjectiveMetrics(Strict):
    """Everything measured of one objective; parts that were not asked for are None.

    Attributes:
        label: its name.
        own: whether the run trains with it.
        equation: its loss per token.
        logits: at the policy that sampled.
        displaced: at a policy that has moved on, the same for all objectives.
        verdict: what the numbers say, in words.
    """

    label: str
    own: bool
    equation: str
    logits: LogitMetrics | None = None
    displaced: LogitMetrics | None = None
    gradients: GradientMetrics | None = None
    update: UpdateMetrics | None = None
    sharpness: SharpnessMetrics | None = None
    direction: DirectionMetrics | None = None
    reuse: ReuseMetrics | None = None
    curvature: CurvatureMetrics | None = None
    verdict: list[str] = Field(default_factory=list)


class CheckpointMetrics(Strict):
    """One checkpoint.

    Attributes:
        step: last finished step; None for a checkpoint without a run.
        policy: digest of its weights.
        rollouts: file of the frozen rollouts.
        prompts, samples, tokens: their size.
        correct, reward: share judged right, None where no grader is known; mean reward.
        entropy: mean over the response tokens, nats.
        probability: mean probability of the sampled tokens.
        displaced_kl: mean KL(rollout policy || displaced policy), nats per token; None where not displaced.
        displaced_by: label of the objective whose steps displaced it; records of 0.1 do not say, there it is the first.
        objectives: one entry each, the run's own first.
        cosines: cosine of the gradients of each pair of objectives, [label][label].
    """

    step: int | None
    policy: str
    rollouts: str
    prompts: int
    samples: int
    tokens: int
    correct: float | None
    reward: float
    entropy: float
    probability: float
    displaced_kl: float | None
    displaced_by: str | None = None
    objectives: list[ObjectiveMetrics]
    cosines: dict[str, dict[str, float | None]]


class InspectRecord(Strict):
    """Contents of INSPECT.json.

    Attributes:
        schema_version: version of this layout.
        path: what the user named.
        recipe: name of the recipe.
        target: the target that all objectives are held against, in words.
        drift: optimizer steps of the run's own objective to the displaced policy.
        parameters: trainable parameters.
        notes: what was left out, and why.
        snapshots: in the order of training.
        provenance: versions, commit and machine.
    """

    schema_version: int = SCHEMA_VERSION
    path: str
    recipe: str
    target: str
    drift: int
    parameters: int
    notes: list[str]
    snapshots: list[CheckpointMetrics]
    provenance: Provenance


def read_record(path: Path) -> InspectRecord:
    """Read INSPECT.json.

    Raises:
        UserError: it is missing or not such a record.
    """
    try:
        return InspectRecord.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            Problem(f"cannot be read as an inspection: {reason}", file=str(path), remedy="run inspect-grads again")
        ) from None
