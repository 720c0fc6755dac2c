"""The findings on an objective: its metrics in words, with the number behind each. No torch here."""

from __future__ import annotations

from typing import Literal

from cvxrl.inspection.metrics import CurvatureMetrics, GradientMetrics, LogitMetrics, Range
from cvxrl.inspection.record import ObjectiveMetrics
from cvxrl.inspection.step_metrics import LineSearchMetrics, ReuseMetrics, SharpnessMetrics, UpdateMetrics

# A share of tokens below this is mentioned but decides nothing.
NOTABLE = 0.05
# One update that moves the policy further than this, in nats per token, is called a jump.
JUMP = 0.1


def headline(metrics: ObjectiveMetrics) -> str:
    """One or two words: the worst thing that was found, in the order in which it hurts.

    A word is said only where the 95% interval over prompts clears its threshold, so that other rollouts of the same
    checkpoint would say it too.
    """
    off = metrics.displaced or metrics.logits
    if metrics.update is not None and _end(metrics.update.kl_interval, "low", metrics.update.kl) > JUMP:
        return "jumps"
    if _overshoots(metrics):
        return "overshoots"
    if off is not None and _end(off.intervals.get("away"), "low", off.away or 0.0) >= NOTABLE:
        return "pulls away"
    if off is not None and _end(off.intervals.get("frozen"), "low", off.frozen or 0.0) >= NOTABLE:
        return "partly frozen"
    seen = metrics.logits
    if seen is not None and seen.convex is not None:
        convex = _end(seen.intervals.get("convex"), "high", seen.convex)
        if convex <= 1 - NOTABLE:
            return "not convex"
    if metrics.gradients is not None and metrics.gradients.norm == 0.0:
        return "no gradient"
    return "steady"


def _end(interval: Range | None, name: Literal["low", "high"], value: float) -> float:
    """An end of an interval, or the value itself in records that have none."""
    if interval is None:
        return value
    return interval.low if name == "low" else interval.high


def _overshoots(metrics: ObjectiveMetrics) -> bool:
    """Whether the loss is back at its start before the step's end, and above it there beyond doubt."""
    if metrics.sharpness is None or metrics.sharpness.room is None:
        return False
    taken = metrics.update.share if metrics.update is not None and metrics.update.share is not None else 1.0
    if metrics.sharpness.room >= taken:
        return False
    change = None if metrics.update is None else metrics.update.loss_change_interval
    return change is None or change.low > 0


def findings(metrics: ObjectiveMetrics, drift: int, own: str, displaced_kl: float | None) -> list[str]:
    """Sentences; the first is the headline.

    Args:
        metrics: of one objective.
        drift: optimizer steps to the displaced policy.
        own: label of the objective that took them.
        displaced_kl: how far that policy is, nats per token.
    """
    lines = [headline(metrics)]
    if metrics.logits is not None:
        if metrics.logits.convex is not None:
            lines.append(_convexity(metrics.logits, metrics.logits.convex))
        lines.append(_direction(metrics.logits, "where it was sampled"))
    if metrics.displaced is not None and displaced_kl is not None:
        where = f"after {drift} steps of {own} (KL {displaced_kl:.2g})"
        lines.append(_direction(metrics.displaced, where))
    for text in (
        metrics.gradients and _gradients(metrics.gradients),
        metrics.update and _update(metrics.update),
        metrics.sharpness and _sharpness(metrics.sharpness),
        metrics.reuse and _reuse(metrics.reuse),
        metrics.curvature and _curvature(metrics.curvature),
    ):
        if text:
            lines.append(text)
    return lines


def _convexity(n: LogitMetrics, convex: float) -> str:
    whole = n.known is None or n.known == n.tokens
    if convex == 1:
        return f"convex in the logits of {'every token' if whole else f'all {n.known:,} sampled tokens'}"
    bent = f"{_percent(n.indefinite or 0.0)} indefinite, {_percent(n.concave or 0.0)} concave"
    if n.smallest is not None:
        bent += f"; smallest eigenvalue {n.smallest:.2g}{_of_tokens(n)}"
    tokens = "the tokens" if whole else f"{n.known:,} sampled tokens"
    return f"convex in the logits of {_percent(convex)}{_range(n, 'convex')} of {tokens} ({bent})"


def _range(n: LogitMetrics, name: str) -> str:
    """The 95% interval over prompts of a share."""
    interval = n.intervals.get(name)
    return "" if interval is None else f" [{_percent(interval.low)}, {_percent(interval.high)}]"


def _of_tokens(n: LogitMetrics) -> str:
    """Which tokens' eigenvalues were looked at."""
    if n.eigenvalue_tokens is None:
        return ""
    if n.eigenvalue_tokens == n.tokens:
        return f" of all {n.tokens:,} tokens"
    return f" of {n.eigenvalue_tokens:,} sampled tokens"


def _direction(n: LogitMetrics, where: str) -> str:
    if not n.directed or n.away is None:
        return f"{where}: no token has a target other than where it is"
    pulls = f"{_percent(n.away)}{_range(n, 'away')} of the tokens pull away from their target"
    if not n.away:
        # A convex loss with its minimum at the target cannot: that is the theorem, and seeing it is no evidence.
        pulls = "no token pulls away" + (", as convexity implies" if n.convex == 1 else _range(n, "away"))
    frozen = "none is frozen"
    if n.frozen:
        names = {"clip": "by the clip", "improbable": "near p = 0", "certain": "near p = 1", "flat": "from the start"}
        why = [f"{_percent(share)} {names[name]}" for name, share in n.frozen_by.items() if share]
        frozen = f"frozen far from it: {', '.join(why)}"
    return f"{where}: {pulls}; {frozen}"


def _gradients(n: GradientMetrics) -> str:
    if n.norm == 0:
        return "no gradient: nothing in the batch moves the policy"
    text = f"gradient norm {n.norm:.3g}"
    if n.negative_share is not None and n.sign_cosine is not None:
        text += (
            f", {_percent(n.negative_share)} of it from negative advantages "
            f"(cosine with the positive {n.sign_cosine:+.2f})"
        )
    if n.noise_scale.value is not None:
        bounds = "".join(f", {name} {bound:.3g}" for name, bound in _bounds(n) if bound is not None)
        text += f"; as much noise as signal at {n.noise_scale.value:.3g} prompts{bounds}; the batch has {n.prompts}"
    else:
        text += "; the batch is too noisy to tell a gradient from none"
    return text


def _bounds(n: GradientMetrics) -> list[tuple[str, float | None]]:
    return [("at least", n.noise_scale.low), ("at most", n.noise_scale.high)]


def _update(n: UpdateMetrics) -> str:
    part = "" if n.share is None else f", {n.share:.3g} of it accepted"
    return (
        f"one step (lr {n.learning_rate:.2g}, {n.optimizer} optimizer state{part}) moves the policy by KL {n.kl:.2g}, "
        f"its surrogate by {n.surrogate:+.2g}, entropy {n.entropy_before:.3g} to {n.entropy_after:.3g}, "
        f"largest ratio {n.ratio['max']:.3g}"
    )


def _sharpness(n: SharpnessMetrics) -> str:
    if n.room is None:
        text = f"its step can be stretched {n.searched:g} times and more before its loss rises"
    elif n.room == 0:
        text = f"its step overshoots: even {n.searched:.1g} of it raises the loss"
    elif n.room < 1:
        text = f"its step overshoots: the loss is back at its start after {n.room:.2g} of it"
    else:
        text = f"its step can be stretched {n.room:.2g} times before its loss is back at its start"
    return text + _search(n.line_search)


def _search(n: LineSearchMetrics | None) -> str:
    if n is None:
        return ""
    if n.share == 0:
        return "; a line search takes none of it" + (", which leads uphill" if n.slope >= 0 else "")
    if n.share == 1:
        return "; a line search takes all of it"
    fits = "" if n.room is None else f", which fits {n.room:.2g} times"
    return f"; a line search takes {n.share:.3g} of it{fits}"


def _reuse(n: ReuseMetrics) -> str:
    first, last = n.points[0], n.points[-1]
    if n.diverged is not None:
        return f"on one rollout it diverges {n.diverged}"
    gone = "" if not first.norm else f", gradient norm {last.norm / first.norm:.2g} times what it was"
    away, frozen = (
        f"{_percent(share or 0.0)}{_range(last.logits, name)}"
        for name, share in (("away", last.logits.away), ("frozen", last.logits.frozen))
    )
    return (
        f"after {last.update} steps on one rollout: {away} of the tokens pull away, {frozen} are frozen{gone}, KL to "
        f"the target {first.target_kl:.2g} to {last.target_kl:.2g}, entropy {first.entropy:.3g} to {last.entropy:.3g}"
    )


def _curvature(n: CurvatureMetrics) -> str:
    return f"Hessian from {n.smallest:.2g} to {n.largest:.2g}, trace {n.trace:.3g} ± {n.trace_error:.1g}"


def _percent(share: float) -> str:
    if 0 < share < 0.001:
        return "under 0.1%"
    if 0.999 < share < 1:
        return "over 99.9%"
    return f"{100 * share:.0f}%" if share in (0, 1) or share >= 0.1 else f"{100 * share:.1f}%"
