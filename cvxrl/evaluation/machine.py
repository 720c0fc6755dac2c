"""Provenance of numbers that a policy was asked for."""

from __future__ import annotations

import torch

from cvxrl.policy.model import Policy
from cvxrl.runs.provenance import Provenance, collect_provenance


def provenance_of(policy: Policy) -> Provenance:
    """Code, versions and the machine that the policy runs on."""
    device = policy.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    # The number of threads decides how sums are split, and with it their last bits.
    return collect_provenance(name, torch.get_num_threads())
