"""How far noise alone pushes a sampled token: weights of the KLD gradient over a group, as docs/method.md has them."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from helpers import ROOT

from cvxrl.objectives.target import sampled_tilt
from cvxrl.recipe.lco import LcoKldSpec

FIELDS: dict[str, dict[str, Any]] = {
    "scale 1": {},
    "scale 100": {"negative_beta_scale": 100.0},
    "drift-free": {"shift": "drift-free"},
    "linear": {"tilt": "linear"},
}


def advantages(right: int, size: int = 8) -> list[float]:
    """Group-normalised, of a group of which so many are right."""
    share = right / size
    deviation = math.sqrt(right * (size - right) / (size * (size - 1)))
    return [(1 - share) / deviation] * right + [-share / deviation] * (size - right)


def weights(p0: float, group: list[float], fields: dict[str, Any]) -> list[float]:
    """(q - p0) / (1 - p0) of every sample, from the target that the objective uses, in float64."""
    spec = LcoKldSpec(beta=1.0, **fields)
    others = [0.6 * (1 - p0), 0.4 * (1 - p0)]
    base_NV = torch.tensor([[p0, *others]], dtype=torch.float64).log().repeat(len(group), 1)
    group_N = torch.tensor(group, dtype=torch.float64)
    actions_N = torch.zeros(len(group), dtype=torch.long)
    tilt_N = sampled_tilt(spec, base_NV, actions_N, group_N, group_N.expand(len(group), -1))
    q_N = torch.sigmoid(tilt_N + math.log(p0 / (1 - p0)))
    return [(q - p0) / (1 - p0) for q in q_N.tolist()]


def closed_form(p0: float, t: float) -> float:
    return p0 * math.expm1(t) / (1 + p0 * math.expm1(t))


def mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)


def test_the_weights_on_the_page_are_those_of_the_objective() -> None:
    page = (ROOT / "docs" / "method.md").read_text()
    rows = [
        [float(cell) for cell in line.strip("| ").split("|")] for line in re.findall(r"^\| 0\.\d\d \|.*$", page, re.M)
    ]
    assert [row[0] for row in rows] == [0.01, 0.25, 0.5, 0.75, 0.95, 0.99]
    group = advantages(4)
    assert group[0] == pytest.approx(0.935, abs=5e-4)
    for p0, *told in rows:
        found = [x for fields in FIELDS.values() for w in [weights(p0, group, fields)] for x in (w[0], w[-1], mean(w))]
        assert told == pytest.approx(found, abs=5.1e-5)


@pytest.mark.parametrize("p0", [0.01, 0.25, 0.5, 0.95, 0.99])
@pytest.mark.parametrize("scale", [1.0, 100.0])
@pytest.mark.parametrize("right", [1, 4, 7])
def test_weights_have_their_closed_form(p0: float, scale: float, right: int) -> None:
    group = advantages(right)
    found = weights(p0, group, {"negative_beta_scale": scale})
    assert found == pytest.approx([closed_form(p0, a if a > 0 else a / scale) for a in group], rel=1e-9)


def test_the_gradient_of_the_divergence_has_that_weight() -> None:
    logits = torch.tensor([1.3, -0.4, 0.2], dtype=torch.float64, requires_grad=True)
    old = torch.log_softmax(logits.detach(), -1)
    target = torch.log_softmax(old + torch.tensor([-0.7, 0.0, 0.0], dtype=torch.float64), -1)
    (target.exp() * (target - torch.log_softmax(logits, -1))).sum().backward()
    p0 = float(old[0].exp())
    reinforce = torch.nn.functional.one_hot(torch.tensor(0), 3) - old.exp()
    assert logits.grad is not None
    torch.testing.assert_close(-logits.grad, closed_form(p0, -0.7) * reinforce, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("right", [1, 4, 7])
def test_scale_1_flattens_scale_100_sharpens_and_the_shift_leaves_things_alone(right: int) -> None:
    group = advantages(right)
    drift = {name: [mean(weights(p0, group, f)) for p0 in (0.05, 0.95)] for name, f in FIELDS.items()}
    unlikely, likely = drift["scale 1"]
    assert unlikely > 0 > likely
    unlikely, likely = drift["scale 100"]
    assert 0 < unlikely < likely
    assert drift["drift-free"] == pytest.approx([0.0, 0.0], abs=1e-12)
    unlikely, likely = drift["linear"]
    assert unlikely > 0.05  # clipped
    negative = [w for p0 in (0.01, 0.99) for w in weights(p0, group, FIELDS["scale 100"]) if w < 0]
    assert all(w > -0.03 for w in negative)


def test_numbers_of_the_prose() -> None:
    seven = weights(0.99, advantages(7), {})
    assert seven[-1] == pytest.approx(-9.7, abs=0.05) and mean(seven) == pytest.approx(-0.96, abs=0.005)
    four = [w for p0 in (0.01, 0.99) for w in weights(p0, advantages(4), FIELDS["scale 100"]) if w < 0]
    assert max(four) == pytest.approx(-0.0001, abs=5e-5) and min(four) == pytest.approx(-0.01, abs=1e-3)
    drifts = [mean(weights(0.95, advantages(4), {"negative_beta_scale": s})) for s in (1.0, 2.0, 5.0, 10.0, 100.0)]
    assert drifts == sorted(drifts)
