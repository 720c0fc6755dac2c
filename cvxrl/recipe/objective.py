"""Every objective of the project, joined in one union tagged by `kind`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cvxrl.recipe.lco import LcoKldSpec, LcoLchSpec, LcoMseSpec, LcoSpec
from cvxrl.recipe.policy_gradient import AwrSpec, CispoSpec, GrpoSpec, GspoSpec, ReinforceSpec
from cvxrl.recipe.preference import DpoSpec, QrmSpec, SftSpec
from cvxrl.recipe.regression import DroSpec, GvpoSpec, PmdSpec, RebelSpec, TpoSpec

ObjectiveSpec = Annotated[
    LcoKldSpec
    | LcoMseSpec
    | LcoLchSpec
    | GrpoSpec
    | GspoSpec
    | CispoSpec
    | ReinforceSpec
    | AwrSpec
    | TpoSpec
    | PmdSpec
    | DroSpec
    | RebelSpec
    | GvpoSpec
    | SftSpec
    | DpoSpec
    | QrmSpec,
    Field(discriminator="kind"),
]

__all__ = [
    "AwrSpec",
    "CispoSpec",
    "DpoSpec",
    "DroSpec",
    "GrpoSpec",
    "GspoSpec",
    "GvpoSpec",
    "LcoKldSpec",
    "LcoLchSpec",
    "LcoMseSpec",
    "LcoSpec",
    "ObjectiveSpec",
    "PmdSpec",
    "QrmSpec",
    "RebelSpec",
    "ReinforceSpec",
    "SftSpec",
    "TpoSpec",
]
