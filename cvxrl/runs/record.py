"""run.json: what a run was and how it ended."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from cvxrl.runs.provenance import Provenance

SCHEMA_VERSION = 1
Status = Literal["running", "finished", "diverged", "interrupted", "failed"]


class Divergence(BaseModel):
    """Why and where a run diverged.

    Attributes:
        step: step that could not be finished.
        tensor: what was not finite.
        detail: how it was found.
        last_checkpoint: last good checkpoint, relative to the run directory, or None.
    """

    step: int
    tensor: str
    detail: str
    last_checkpoint: str | None


class RunRecord(BaseModel):
    """Contents of run.json.

    Attributes:
        schema_version: version of this layout.
        status: how the run stands.
        digest: SHA-256 of the resolved recipe.
        seed: training seed.
        task_fingerprint: digest of the training data.
        parameters: number of parameters of the policy.
        provenance: code, versions and machine.
        started, ended: UTC times, ISO 8601.
        result: final numbers, e.g. `eval/accuracy`.
        divergence: set when the status is `diverged`.
    """

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA_VERSION
    status: Status
    digest: str
    seed: int
    task_fingerprint: str
    parameters: int
    provenance: Provenance
    started: str
    ended: str | None = None
    result: dict[str, Any] = {}
    divergence: Divergence | None = None
