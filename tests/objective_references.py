"""What every objective's paper says about a few tokens: loss and gradient worked out by hand, in decimal arithmetic.

Nothing of the package but its specs is used. Gradients are written down, not derived by a machine: an objective that
reads the logits through u_n = log pi(a_n) has dL/dz_n = (dL/du_n)(e_a - pi_n), so `slopes` holds the dL/du_n.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from fractions import Fraction
from functools import lru_cache

from cvxrl.recipe.objective import (
    AwrSpec,
    CispoSpec,
    DpoSpec,
    DroSpec,
    GrpoSpec,
    GspoSpec,
    GvpoSpec,
    LcoKldSpec,
    LcoLchSpec,
    LcoMseSpec,
    ObjectiveSpec,
    PmdSpec,
    QrmSpec,
    RebelSpec,
    ReinforceSpec,
    SftSpec,
    TpoSpec,
)

D = Decimal
Row = list[Decimal]
DIGITS = 60


def exact(value: float) -> Decimal:
    """The float's own value, so that both sides start from the same numbers."""
    fraction = Fraction(value)
    return D(fraction.numerator) / D(fraction.denominator)


@dataclass
class Tokens:
    """Plain numbers of a batch: row n of ``z`` and ``z_old`` are logits, ``sequence`` and ``group`` are indices."""

    z: list[Row]
    action: list[int]
    advantage: Row
    z_old: list[Row]
    reference: Row
    sequence: list[int]
    group: list[int]
    group_advantages: list[Row]
    weight: Row
    candidates: list[list[int]] = field(default_factory=list)
    scores: list[Row] = field(default_factory=list)


def softmax(z: Row) -> Row:
    top = max(z)
    e = [(x - top).exp() for x in z]
    return [x / sum(e) for x in e]


def log_softmax(z: Row) -> Row:
    top = max(z)
    log_sum = top + sum(((x - top).exp() for x in z), D(0)).ln()
    return [x - log_sum for x in z]


@lru_cache(maxsize=64)  # a bisection asks for the same odds again and again
def sigmoid(x: Decimal) -> Decimal:
    return 1 / (1 + (-x).exp()) if x >= 0 else x.exp() / (1 + x.exp())


def tanh(x: Decimal) -> Decimal:
    return 2 * sigmoid(2 * x) - 1


def log_odds(z: Row, a: int) -> Decimal:
    """Log p_a - log(1 - p_a), without ever forming 1 - p_a."""
    others = [x for v, x in enumerate(z) if v != a]
    top = max(others)
    return z[a] - top - sum(((x - top).exp() for x in others), D(0)).ln()


def reference(tokens: Tokens, spec: ObjectiveSpec) -> tuple[Row, list[Row]]:
    """Loss of each token, and gradient of the weighted sum of all losses in the logits."""
    with localcontext() as context:
        context.prec = DIGITS
        if isinstance(spec, LcoKldSpec | LcoMseSpec | LcoLchSpec):
            return _lco(tokens, spec)
        u = [log_softmax(z)[a] for z, a in zip(tokens.z, tokens.action, strict=True)]
        old = [log_softmax(z)[a] for z, a in zip(tokens.z_old, tokens.action, strict=True)]
        losses, slopes = _through_log_probs(tokens, spec, u, old)
        gradients = []
        for z, a, slope in zip(tokens.z, tokens.action, slopes, strict=True):
            gradients.append([slope * ((1 if v == a else 0) - p) for v, p in enumerate(softmax(z))])
        return losses, gradients


def _through_log_probs(tokens: Tokens, spec: ObjectiveSpec, u: Row, old: Row) -> tuple[Row, Row]:
    pairs = []
    for n, a in enumerate(tokens.advantage):
        ratio = (u[n] - old[n]).exp()
        match spec:
            case ReinforceSpec():
                pair = -a * u[n], -a
            case SftSpec():
                pair = -u[n], D(-1)
            case AwrSpec():
                weight = (min(a / exact(spec.beta), exact(spec.weight_max).ln())).exp()
                pair = -weight * u[n], -weight
            case CispoSpec():
                weight = min(ratio, exact(spec.ratio_max))
                pair = -weight * a * u[n], -weight * a
            case DroSpec():
                beta = exact(spec.beta)
                pair = -a * u[n] + beta / 2 * (u[n] - old[n]) ** 2, -a + beta * (u[n] - old[n])
            case GrpoSpec():
                pair = _clipped(ratio, a, spec.clip_low, spec.clip_high)
            case _:
                return _of_sequences(tokens, spec, u, old)
        pairs.append(pair)
    return [loss for loss, _ in pairs], [w * slope for w, (_, slope) in zip(tokens.weight, pairs, strict=True)]


def _clipped(ratio: Decimal, a: Decimal, low: float, high: float) -> tuple[Decimal, Decimal]:
    """Loss, and its slope in log ratio: free to move towards 1, stopped when it has gone far enough."""
    bottom, top = 1 - exact(low), 1 + exact(high)
    if a > 0 and ratio > top:
        return -top * a, D(0)
    if a < 0 and ratio < bottom:
        return -bottom * a, D(0)
    return -ratio * a, -ratio * a


def _of_sequences(tokens: Tokens, spec: ObjectiveSpec, u: Row, old: Row) -> tuple[Row, Row]:
    """Loss L_s of whole sequences on every token; slopes of sum_s W_s L_s, W_s the weight of all its tokens."""
    rows = [[n for n, s in enumerate(tokens.sequence) if s == i] for i in range(len(tokens.group))]
    length = [D(len(r)) for r in rows]
    weight = [sum((tokens.weight[n] for n in r), D(0)) for r in rows]
    a = [tokens.advantage[r[0]] for r in rows]
    said = [sum((u[n] for n in r), D(0)) for r in rows]
    before = [sum((old[n] for n in r), D(0)) for r in rows]
    loss, slope = [D(0)] * len(rows), [D(0)] * len(rows)  # slope: in every token's u_n
    for s in range(len(rows)):
        if isinstance(spec, GspoSpec):
            ratio = ((said[s] - before[s]) / length[s]).exp()
            loss[s], by_log = _clipped(ratio, a[s], spec.clip_low, spec.clip_high)
            slope[s] = weight[s] * by_log / length[s]
        if isinstance(spec, PmdSpec):
            tau = exact(spec.tau)
            distance = a[s] / tau - (said[s] - before[s])
            loss[s], slope[s] = tau / 2 * distance**2, -weight[s] * tau * distance
    for group in sorted(set(tokens.group)):
        members = [s for s, g in enumerate(tokens.group) if g == group]
        _of_group(members, tokens, spec, rows, weight, a, said, before, loss, slope)
    return [loss[s] for s in tokens.sequence], [slope[s] for s in tokens.sequence]


def _of_group(
    members: list[int],
    tokens: Tokens,
    spec: ObjectiveSpec,
    rows: list[list[int]],
    weight: Row,
    a: Row,
    said: Row,
    before: Row,
    loss: Row,
    slope: Row,
) -> None:
    size = D(len(members))
    match spec:
        case RebelSpec():
            e = {s: said[s] - before[s] - exact(spec.eta) * a[s] for s in members}
            for i in members:
                loss[i] = sum(((e[i] - e[j]) ** 2 for j in members if j != i), D(0)) / (size - 1)
                # e_i stands in its own loss and in every other one's.
                slope[i] = sum((2 * (weight[i] + weight[j]) * (e[i] - e[j]) for j in members), D(0)) / (size - 1)
        case GvpoSpec():
            e = {s: exact(spec.beta) * (said[s] - before[s]) - a[s] for s in members}
            mean = sum(e.values(), D(0)) / size
            factor = size / (2 * (size - 1))
            pull = sum((weight[j] * (e[j] - mean) for j in members), D(0)) / size
            for i in members:
                loss[i] = factor * (e[i] - mean) ** 2
                slope[i] = exact(spec.beta) * 2 * factor * (weight[i] * (e[i] - mean) - pull)
        case TpoSpec():
            p = softmax([said[s] for s in members])
            q = softmax([before[s] + a[s] / exact(spec.eta) for s in members])
            total = sum((weight[s] * target for s, target in zip(members, q, strict=True)), D(0))
            for s, now, target in zip(members, p, q, strict=True):
                loss[s] = -size * target * now.ln()
                slope[s] = -size * (weight[s] * target - total * now)
        case DpoSpec() | QrmSpec():
            chosen, rejected = members
            both = weight[chosen] + weight[rejected]
            if isinstance(spec, DpoSpec):
                w = [said[s] - sum((tokens.reference[n] for n in rows[s]), D(0)) for s in members]
                margin = exact(spec.beta) * (w[0] - w[1])
                loss[chosen] = loss[rejected] = -sigmoid(margin).ln()
                slope[chosen] = -both * exact(spec.beta) * sigmoid(-margin)
                slope[rejected] = -slope[chosen]
                return
            mean = {s: said[s] / len(rows[s]) for s in members}
            margin = exact(spec.beta) * (mean[chosen] - mean[rejected]) - exact(spec.gamma)
            imitation = exact(spec.sft_coefficient)
            loss[chosen] = loss[rejected] = -sigmoid(margin).ln() - imitation * mean[chosen]
            push = both * exact(spec.beta) * sigmoid(-margin)
            slope[chosen] = (-push - both * imitation) / len(rows[chosen])
            slope[rejected] = push / len(rows[rejected])


def _lco(tokens: Tokens, spec: LcoKldSpec | LcoMseSpec | LcoLchSpec) -> tuple[Row, list[Row]]:
    losses, gradients = [], []
    for n, (z, a) in enumerate(zip(tokens.z, tokens.action, strict=True)):
        base = list(tokens.z_old[n] if spec.target == "frozen" else z)
        if isinstance(spec, LcoKldSpec) and spec.support.kind == "top-k-fill":
            kept = sorted(range(len(base)), key=lambda v: -base[v])[: spec.support.k]
            base = [base[v] if v in kept else exact(spec.support.fill) for v in range(len(base))]
        ids = tokens.candidates[n] if tokens.candidates else [a]
        if tokens.candidates:
            tilts = [_scaled(x, spec) for x in tokens.scores[n]]
        else:
            tilts = [_sampled_tilt(tokens.advantage[n], tokens.group_advantages[n], base, a, spec)]
        if isinstance(spec, LcoKldSpec):
            loss, gradient = _kld(z, base, ids, tilts, spec, restricted=bool(tokens.candidates))
        else:
            loss, gradient = D(0), [D(0)] * len(z)
            for v, tilt in zip(ids, tilts, strict=True):
                distance = z[v] - base[v] - tilt
                squared = isinstance(spec, LcoMseSpec)
                loss += distance**2 if squared else ((distance.exp() + (-distance).exp()) / 2).ln()
                gradient[v] = 2 * distance if squared else tanh(distance)
        losses.append(loss)
        gradients.append([tokens.weight[n] * g for g in gradient])
    return losses, gradients


def _kld(z: Row, base: Row, ids: list[int], tilts: Row, spec: LcoKldSpec, *, restricted: bool) -> tuple[Decimal, Row]:
    log_pi, pi = log_softmax(z), softmax(z)
    tilted = list(base)
    for v, tilt in zip(ids, tilts, strict=True):
        tilted[v] += tilt
    inside = ids if restricted else list(range(len(z)))
    log_target = dict(zip(inside, log_softmax([tilted[v] for v in inside]), strict=True))
    target = {v: x.exp() for v, x in log_target.items()}
    if spec.support.kind == "top-k" and not restricted:
        kept = {*sorted(inside, key=lambda v: -base[v])[: spec.support.k], *ids}
        tail = [v for v in inside if v not in kept]
        loss = sum((target[v] * (log_target[v] - log_pi[v]) for v in kept), D(0))
        gradient = [pi[v] - target[v] for v in inside]
        if tail:
            tail_target, tail_pi = sum(target[v] for v in tail), sum(pi[v] for v in tail)
            loss += tail_target * (tail_target / tail_pi).ln()
            for v in tail:
                gradient[v] = pi[v] - tail_target * pi[v] / tail_pi
        return loss, gradient
    loss = sum((target[v] * (log_target[v] - log_pi[v]) for v in inside), D(0))
    return loss, [pi[v] - target.get(v, D(0)) for v in range(len(z))]


def _scaled(advantage: Decimal, spec: LcoKldSpec | LcoMseSpec | LcoLchSpec) -> Decimal:
    return advantage / exact(spec.beta) / (exact(spec.negative_beta_scale) if advantage < 0 else 1)


def _sampled_tilt(
    advantage: Decimal, group: Row, base: Row, a: int, spec: LcoKldSpec | LcoMseSpec | LcoLchSpec
) -> Decimal:
    tilt = _scaled(advantage, spec)
    odds = log_odds(base, a)
    if spec.shift == "drift-free":
        tilt += _drift_free(spec, [_scaled(x, spec) for x in group], odds)
    return _shaped(tilt, odds, spec)


_margin = lru_cache(exact)


def _shaped(tilt: Decimal, odds: Decimal, spec: LcoKldSpec | LcoMseSpec | LcoLchSpec) -> Decimal:
    if spec.tilt == "exponential" or tilt == 0:
        return tilt
    p, margin = sigmoid(odds), _margin(spec.linear_margin)
    q = min(max(p + tilt * sigmoid(-odds), min(p, margin)), max(p, 1 - margin))
    return D(0) if q == p else (q / (1 - q)).ln() - odds


def _drift_free(spec: LcoKldSpec | LcoMseSpec | LcoLchSpec, tilts: Row, odds: Decimal) -> Decimal:
    def total(c: Decimal) -> Decimal:
        moved = [_shaped(t + c, odds, spec) for t in tilts]
        if isinstance(spec, LcoMseSpec):
            return sum(moved, D(0))
        if isinstance(spec, LcoLchSpec):
            # 1 - |tanh| apart from the ones, which cancel: e^-1750 is beyond any number of digits.
            ones = sum(1 if x >= 0 else -1 for x in moved)
            tails = sum((2 * sigmoid(-2 * abs(x)) * (1 if x >= 0 else -1) for x in moved), D(0))
            return D(ones) if ones else -tails
        return sum((sigmoid(odds + x) - sigmoid(odds) for x in moved), D(0))

    low, high = -max(tilts), -min(tilts)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if total(middle) > 0 else (middle, high)
    return low
