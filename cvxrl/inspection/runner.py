"""From a plan to a record: every checkpoint, every objective, every part that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from cvxrl.evaluation.evaluator import provenance_of
from cvxrl.gradients.gram import Gram
from cvxrl.gradients.logit_space import Rules
from cvxrl.inspection.measure_curvature import LINE_PASSES, measure_curvature, measure_sharpness
from cvxrl.inspection.measure_gradients import BANDS, measure_bands, measure_cosines, measure_gradients
from cvxrl.inspection.measure_logits import measure_logits
from cvxrl.inspection.measure_update import Spoken, kl, measure_update, speak, take_steps
from cvxrl.inspection.options import PARTS, QUICK_PARTS, Part
from cvxrl.inspection.plan import FEWEST_MINIBATCHES, Plan
from cvxrl.inspection.reading import verdict
from cvxrl.inspection.record import InspectRecord, LogitNumbers, ObjectiveNumbers, Snapshot
from cvxrl.inspection.source import Snapshot as SnapshotSource
from cvxrl.inspection.subject import Entrant, Subject, load_subject
from cvxrl.recipe.lco import LcoKldSpec
from cvxrl.report.progress import ProgressBar
from cvxrl.tasks import Grader, Task, load_grader, load_task

# From here on a model is large: costly parts are left out or measured on a part of the rollouts, and it is said.
LARGE = 20_000_000
# Tokens of a micro-batch whose eigenvalues are computed: each is a bisection over the vocabulary. The signs, which
# the shares count, are those of all tokens.
_EIGENVALUE_TOKENS = 256
# Passes over a sequence, in forward passes: for progress alone.
_LOOK, _STEP, _SPLIT, _PRODUCT = 2, 3, 6, 6


@dataclass(frozen=True)
class Scope:
    """What is measured of a checkpoint, given its size.

    Attributes:
        parts: names of the parts.
        large: whether the model is.
        rules: of logit space.
        line_passes: forward passes of the line search.
        minibatches: whose gradients are held beside each other.
        notes: what was left out.
    """

    parts: tuple[Part, ...]
    large: bool
    rules: Rules
    line_passes: int
    minibatches: int
    notes: list[str]


def run_inspection(plan: Plan, progress: ProgressBar, stopped: Callable[[], bool]) -> InspectRecord | None:
    """Measure; None if the user asked to stop (the frozen rollouts stay).

    Raises:
        UserError: a checkpoint cannot be measured.
    """
    task, grader = load_task(plan.recipe.task, plan.recipe.seed), load_grader(plan.recipe.task)
    try:
        return _run(plan, task, grader, progress, stopped)
    finally:
        grader.close()


def _run(
    plan: Plan, task: Task, grader: Grader, progress: ProgressBar, stopped: Callable[[], bool]
) -> InspectRecord | None:
    measured: list[Snapshot] = []
    subject: Subject | None = None
    scope: Scope | None = None
    for number, source in enumerate(plan.snapshots):
        subject = load_subject(plan, source, task, grader)
        if scope is None:
            scope = _scope(plan, subject)
            sequences = len(subject.rollouts.responses)
            total = len(plan.snapshots) * _work(plan, scope, sequences)
            progress.start("inspecting", total, 0, f"inspecting {len(plan.snapshots)} checkpoint(s)")
        text = f"{source.name} ({number + 1} of {len(plan.snapshots)})"
        meter = _Meter(progress, text, stopped)
        try:
            measured.append(_snapshot(plan, scope, subject, source, meter))
        except _Stopped:
            return None
    assert subject is not None and scope is not None
    return InspectRecord(
        path=plan.options.path,
        recipe=plan.recipe.name,
        target=describe_target(plan.yardstick),
        drift=plan.options.drift if "logits" in scope.parts else 0,
        parameters=sum(p.numel() for p in subject.trainable.values()),
        notes=scope.notes,
        snapshots=measured,
        provenance=provenance_of(subject.policy),
    )


class _Stopped(Exception):
    """The user asked to stop."""


@dataclass(frozen=True)
class _Meter:
    """Turns sequences into progress."""

    progress: ProgressBar
    text: str
    stopped: Callable[[], bool]

    def at(self, cost: int) -> Callable[[int], None]:
        """A tick for work that costs ``cost`` forward passes per sequence."""

        def tick(sequences: int) -> None:
            self.progress.advance(cost * sequences, self.text)
            if self.stopped():
                raise _Stopped

        return tick


def _scope(plan: Plan, subject: Subject) -> Scope:
    """What the model's size allows."""
    large = sum(p.numel() for p in subject.trainable.values()) > LARGE
    default = QUICK_PARTS if len(plan.snapshots) > 1 else PARTS
    parts = plan.options.parts or default
    notes = []
    if plan.options.parts is None and large:
        left = [part for part in ("bands", "curvature") if part in parts]
        parts = tuple(part for part in parts if part not in left)
        notes += [f"no {part}: the model is large; ask for them with --parts" for part in left]
    if large and "bands" in parts:
        notes.append("the gradient by probability is measured on one minibatch: the model is large")
    if "logits" in parts:
        notes.append(f"smallest eigenvalues are over {_EIGENVALUE_TOKENS} tokens of each micro-batch, drawn at random")
    passes = LINE_PASSES // 3 * 2 if large else LINE_PASSES
    count = plan.minibatches
    if large and plan.options.minibatches is None and count % FEWEST_MINIBATCHES == 0:
        count = FEWEST_MINIBATCHES
    return Scope(parts, large, Rules(eigenvalue_tokens=_EIGENVALUE_TOKENS), passes, count, notes)


def _work(plan: Plan, scope: Scope, sequences: int) -> int:
    """Progress units of one checkpoint."""
    count, small = len(plan.contestants), sequences // scope.minibatches
    costs = {
        "logits": count * _LOOK * (2 if plan.options.drift else 1) * sequences + plan.options.drift * _STEP * sequences,
        "gradients": count * _SPLIT * sequences,
        "bands": count * BANDS * _STEP * (small if scope.large else sequences),
        "update": count * _STEP * sequences * (2 if "logits" in scope.parts and not scope.large else 1),
        "sharpness": count * scope.line_passes * sequences,
        "curvature": count * (plan.options.lanczos + plan.options.probes) * _PRODUCT * small,
    }
    return sum(cost for part, cost in costs.items() if part in scope.parts)


def _snapshot(plan: Plan, scope: Scope, subject: Subject, source: SnapshotSource, meter: _Meter) -> Snapshot:
    own = subject.entrants[0]
    spoken = speak(own)
    found = {
        entrant.label: ObjectiveNumbers(
            label=entrant.label, own=entrant.contestant.own, equation=entrant.contestant.recipe.equation
        )
        for entrant in subject.entrants
    }
    displaced: dict[str, LogitNumbers] = {}
    displaced_kl = None
    if "logits" in scope.parts and plan.options.drift:
        displaced, displaced_kl = _displaced(plan, scope, subject, spoken, meter)
    totals = Gram(torch.bfloat16 if scope.large else None)
    for entrant in subject.entrants:
        numbers = found[entrant.label].model_copy(update={"displaced": displaced.get(entrant.label)})
        numbers = _measure(plan, scope, subject, entrant, spoken, numbers, totals, meter)
        lines = verdict(numbers, plan.options.drift, own.label, displaced_kl)
        found[entrant.label] = numbers.model_copy(update={"verdict": lines})
    rollouts = subject.rollouts
    return Snapshot(
        step=source.step,
        policy=subject.weights_hash,
        rollouts=str(subject.file),
        prompts=len(rollouts.rewards),
        samples=len(rollouts.rewards[0]),
        tokens=sum(map(len, rollouts.responses)),
        correct=rollouts.metrics["reward/correct"],
        reward=rollouts.metrics["reward/mean"],
        entropy=float(spoken.entropy_N.mean()),
        probability=float(spoken.action_N.exp().mean()),
        displaced_kl=displaced_kl,
        objectives=list(found.values()),
        cosines=measure_cosines(totals, [e.label for e in subject.entrants] if "gradients" in scope.parts else []),
    )


def _measure(
    plan: Plan,
    scope: Scope,
    subject: Subject,
    entrant: Entrant,
    spoken: Spoken,
    numbers: ObjectiveNumbers,
    totals: Gram,
    meter: _Meter,
) -> ObjectiveNumbers:
    """All parts of one objective at the policy that sampled."""
    options = plan.options
    part = _telling(subject, scope.minibatches)
    found: dict[str, object] = {}
    rules = scope.rules if "logits" in scope.parts else None
    if rules is not None:
        found["logits"] = measure_logits(entrant, entrant.on_policy, plan.yardstick, rules, meter.at(_LOOK))
    if "gradients" in scope.parts:
        keep = torch.bfloat16 if scope.large else None
        gradients, total = measure_gradients(subject, entrant, scope.minibatches, keep, meter.at(_SPLIT))
        totals.add(total)
        del total
        if "bands" in scope.parts:
            chosen = part if scope.large else entrant.everything
            bands = measure_bands(subject, entrant, chosen, 1 if scope.large else BANDS, meter.at(_STEP))
            gradients = gradients.model_copy(update={"bands": bands, "band_completions": len(chosen)})
        found["gradients"] = gradients
    if "update" in scope.parts:
        # In logit space once more only where that is cheap; the displaced policy shows the same.
        again = None if scope.large else rules
        found["update"] = measure_update(subject, entrant, spoken, plan.yardstick, again, meter.at(_STEP))
    if "sharpness" in scope.parts:
        found["sharpness"] = measure_sharpness(subject, entrant, scope.line_passes, meter.at(1))
    if "curvature" in scope.parts:
        tick = meter.at(_PRODUCT)
        found["curvature"] = measure_curvature(subject, entrant, part, options.lanczos, options.probes, tick)
    return numbers.model_copy(update=found)


def _telling(subject: Subject, count: int) -> list[int]:
    """One ``count``-th of the sequences, whole groups, those whose rewards differ first: the others teach nothing."""
    rewards_PG = subject.rollouts.rewards
    size = len(rewards_PG[0])
    prompts = sorted(range(len(rewards_PG)), key=lambda p: len(set(rewards_PG[p])) == 1)
    return [size * p + g for p in sorted(prompts[: len(prompts) // count]) for g in range(size)]


def _displaced(
    plan: Plan, scope: Scope, subject: Subject, spoken: Spoken, meter: _Meter
) -> tuple[dict[str, LogitNumbers], float]:
    """Every objective in logit space at one policy that has moved on, and how far that policy is."""
    own = subject.entrants[0]
    memories = {entrant.label: subject.remembered(entrant) for entrant in subject.entrants}
    with subject.restored():
        take_steps(own, memories[own.label], plan.options.drift, subject.snapshot.step or 0, meter.at(_STEP))
        distance = float(kl(spoken, speak(own)).mean())
        found = {
            entrant.label: measure_logits(
                entrant, memories[entrant.label], plan.yardstick, scope.rules, meter.at(_LOOK)
            )
            for entrant in subject.entrants
        }
    return found, distance


def describe_target(spec: LcoKldSpec) -> str:
    """The yardstick in words."""
    below = "" if spec.negative_beta_scale == 1 else f" ({spec.negative_beta_scale * spec.beta:g} where A < 0)"
    shift = "" if spec.shift == "none" else ", drift-free shift"
    tilt = "" if spec.tilt == "exponential" else ", linear tilt"
    return f"pi* ~ pi_old exp(A / beta), beta = {spec.beta:g}{below}{tilt}{shift}"
