"""From a plan to a record: every checkpoint, every objective, every part that was asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from cvxrl.engine.build import check_functions
from cvxrl.errors import Mistakes, Problem, UserError
from cvxrl.evaluation.evaluator import provenance_of
from cvxrl.gradients.gram import Gram
from cvxrl.gradients.logit_space import Rules
from cvxrl.inspection.checkpoint import LoadedCheckpoint, MeasuredObjective, load_checkpoint
from cvxrl.inspection.findings import findings
from cvxrl.inspection.measure_direction import measure_direction, measure_sharpness, step_line
from cvxrl.inspection.measure_gradients import (
    BANDS,
    measure_bands,
    measure_cosines,
    measure_curvature,
    measure_gradients,
)
from cvxrl.inspection.measure_logits import measure_logits
from cvxrl.inspection.measure_reuse import measure_reuse
from cvxrl.inspection.measure_update import (
    TokenDistributions,
    kl,
    measure_update,
    take_steps,
    token_distributions,
)
from cvxrl.inspection.metrics import LogitMetrics
from cvxrl.inspection.plan import InspectionPlan
from cvxrl.inspection.record import CheckpointMetrics, InspectRecord, ObjectiveMetrics
from cvxrl.inspection.scope import LOOK, PRODUCT, SPLIT, STEP, Scope, along_the_step, scope_of, work
from cvxrl.inspection.size import MOST_HOURS
from cvxrl.inspection.sources import Checkpoint
from cvxrl.recipe.lco import LcoKldSpec
from cvxrl.report.format import clock
from cvxrl.report.progress import ProgressBar
from cvxrl.tasks import Grader, Task, load_grader, load_task


def run_inspection(plan: InspectionPlan, progress: ProgressBar) -> InspectRecord:
    """Measure. Nothing is half-written whenever it is interrupted; frozen rollouts that are whole stay.

    Raises:
        UserError: a checkpoint cannot be measured, or it would take days and nobody said that it may.
    """
    progress.note(plan.text)
    mistakes = Mistakes()
    for named in plan.objectives:
        mistakes.attempt(check_functions, named.recipe)
    if mistakes.problems:
        raise UserError(*mistakes.problems)
    if all(source.stored is not None for source in plan.checkpoints):  # nothing is asked for or graded
        return _run(plan, None, None, progress)
    task, grader = load_task(plan.recipe.task, plan.recipe.seed), load_grader(plan.recipe.task)
    grader.attend(progress.note, None)
    try:
        return _run(plan, task, grader, progress)
    finally:
        grader.close()


def _run(plan: InspectionPlan, task: Task | None, grader: Grader | None, progress: ProgressBar) -> InspectRecord:
    measured: list[CheckpointMetrics] = []
    known: list[list[str]] = []
    loaded: LoadedCheckpoint | None = None
    scope: Scope | None = None
    for number, source in enumerate(plan.checkpoints):
        loaded = load_checkpoint(plan, source, task, grader, progress.note)
        known.append(loaded.notes)
        if scope is None:
            scope = scope_of(plan, loaded)
            sequences = len(loaded.rollouts.responses)
            total = len(plan.checkpoints) * work(plan, scope, sequences)
            expected = _seconds(loaded, total)
            if expected > 3600 * MOST_HOURS and not plan.options.yes:
                what = f"{plan.text}, about {expected / 3600:,.0f} hours from here"
                raise UserError(Problem(what, "--prompts", remedy="lower it, name fewer --parts, or add --yes"))
            about = f"inspecting {len(plan.checkpoints)} checkpoint(s), about {clock(expected)}"
            progress.start("inspecting", total, 0, about)
        text = f"{source.name} ({number + 1} of {len(plan.checkpoints)})"
        measured.append(_measure_checkpoint(plan, scope, loaded, source, _Meter(progress, text)))
    assert loaded is not None and scope is not None
    return InspectRecord(
        path=plan.options.path,
        recipe=plan.recipe.name,
        target=describe_target(plan.yardstick),
        drift=plan.options.drift if "logits" in scope.parts else 0,
        parameters=sum(p.numel() for p in loaded.trainable.values()),
        notes=[*scope.notes, *_notes(plan.checkpoints, known)],
        snapshots=measured,
        provenance=provenance_of(loaded.policy),
    )


def _notes(sources: Sequence[Checkpoint], known: Sequence[list[str]]) -> Iterator[str]:
    """What is known of each checkpoint, and what not; with its name where it does not hold for all of them."""
    for notes, source in zip(known, sources, strict=True):
        for note in notes:
            if all(note in others for others in known):
                if source is sources[0]:
                    yield note
            else:
                yield f"{source.name}: {note}"


@dataclass(frozen=True)
class _Meter:
    """Turns sequences into progress."""

    progress: ProgressBar
    text: str

    def at(self, cost: int) -> Callable[[int], None]:
        """A tick for work that costs ``cost`` forward passes per sequence."""

        def tick(sequences: int) -> None:
            self.progress.advance(cost * sequences, self.text)

        return tick


def _seconds(loaded: LoadedCheckpoint, units: int) -> float:
    """How long ``units`` forward passes over a sequence may take, by one over the first prompt's sequences."""
    own = loaded.objectives[0]
    first = own.sequences.select(range(own.recipe.group_size))
    began = time.monotonic()
    own.loss.reader.logits(first)
    return (time.monotonic() - began) / len(first) * units


def _measure_checkpoint(
    plan: InspectionPlan, scope: Scope, loaded: LoadedCheckpoint, source: Checkpoint, meter: _Meter
) -> CheckpointMetrics:
    distributions = token_distributions(loaded.objectives[0])
    found = {
        objective.label: ObjectiveMetrics(
            label=objective.label, own=objective.named.own, equation=objective.recipe.equation
        )
        for objective in loaded.objectives
    }
    displaced: dict[str, LogitMetrics] = {}
    displaced_kl = None
    if "logits" in scope.parts and plan.options.drift:
        displaced, displaced_kl = _displaced(plan, scope, loaded, distributions, meter)
    totals = Gram(torch.bfloat16 if scope.large else None)
    for objective in loaded.objectives:
        metrics = found[objective.label].model_copy(update={"displaced": displaced.get(objective.label)})
        metrics = _measure_objective(plan, scope, loaded, objective, distributions, metrics, totals, meter)
        lines = findings(metrics, plan.options.drift, loaded.own.label, displaced_kl)
        found[objective.label] = metrics.model_copy(update={"verdict": lines})
    rollouts = loaded.rollouts
    return CheckpointMetrics(
        step=source.step,
        policy=loaded.weights_hash,
        rollouts=str(loaded.file),
        prompts=len(rollouts.rewards),
        samples=len(rollouts.rewards[0]),
        tokens=sum(map(len, rollouts.responses)),
        correct=rollouts.metrics.get("reward/correct"),
        reward=rollouts.metrics["reward/mean"],
        entropy=float(distributions.entropy_N.mean()),
        probability=float(distributions.action_N.exp().mean()),
        displaced_kl=displaced_kl,
        displaced_by=None if displaced_kl is None else loaded.own.label,
        objectives=list(found.values()),
        cosines=measure_cosines(totals, [e.label for e in loaded.objectives] if "gradients" in scope.parts else []),
    )


def _measure_objective(
    plan: InspectionPlan,
    scope: Scope,
    loaded: LoadedCheckpoint,
    objective: MeasuredObjective,
    distributions: TokenDistributions,
    metrics: ObjectiveMetrics,
    totals: Gram,
    meter: _Meter,
) -> ObjectiveMetrics:
    """All parts of one objective at the policy that sampled."""
    options = plan.options
    part = _informative_part(loaded, scope.minibatches)
    found: dict[str, object] = {}
    rules = scope.rules if "logits" in scope.parts else None
    if rules is not None:
        found["logits"] = measure_logits(objective, objective.on_policy, plan.yardstick, rules, meter.at(LOOK))
    if "gradients" in scope.parts:
        keep = torch.bfloat16 if scope.large else None
        gradients, total = measure_gradients(loaded, objective, scope.minibatches, keep, meter.at(SPLIT))
        totals.add(total)
        del total
        if "bands" in scope.parts:
            chosen = part if scope.large else objective.everything
            bands = measure_bands(loaded, objective, chosen, 1 if scope.large else BANDS, meter.at(STEP))
            gradients = gradients.model_copy(update={"bands": bands, "band_completions": len(chosen)})
        found["gradients"] = gradients
    if {"update", "sharpness", "direction"} & {*scope.parts}:
        # In logit space once more only where that is cheap; the displaced policy shows the same.
        again = None if scope.large else rules
        found |= _along_the_step(plan, scope, loaded, objective, distributions, again, meter)
    if "reuse" in scope.parts and plan.walk is not None:
        tick = meter.at(STEP)
        found["reuse"] = measure_reuse(loaded, objective, plan.walk, plan.yardstick, scope.rules, tick)
    if "curvature" in scope.parts:
        tick = meter.at(PRODUCT)
        found["curvature"] = measure_curvature(loaded, objective, part, options.lanczos, options.probes, tick)
    return metrics.model_copy(update=found)


def _along_the_step(
    plan: InspectionPlan,
    scope: Scope,
    loaded: LoadedCheckpoint,
    objective: MeasuredObjective,
    distributions: TokenDistributions,
    rules: Rules | None,
    meter: _Meter,
) -> dict[str, object]:
    """The parts that look along the objective's own step, which is computed once; of a zero step `update` alone."""
    found: dict[str, object] = {}
    spent, tick = 0, meter.at(1)
    planned = along_the_step(scope) * len(objective.everything) if {"sharpness", "direction"} & {*scope.parts} else 0

    def count(sequences: int) -> None:
        nonlocal spent
        spent += sequences
        tick(sequences if planned else 0)

    with step_line(loaded, objective, count) as line:
        if "update" in scope.parts:
            update = measure_update(loaded, objective, distributions, plan.yardstick, rules, meter.at(STEP), line)
            found["update"] = update
        if line is not None and "sharpness" in scope.parts:
            found["sharpness"] = measure_sharpness(line, loaded.source.step or 0, scope.line_passes)
        if line is not None and "direction" in scope.parts:
            found["direction"] = measure_direction(line)
    tick(max(0, planned - spent))
    return found


def _informative_part(loaded: LoadedCheckpoint, count: int) -> list[int]:
    """One ``count``-th of the sequences, whole groups, those whose rewards differ first: others have no gradient."""
    rewards_PG = loaded.rollouts.rewards
    size = len(rewards_PG[0])
    prompts = sorted(range(len(rewards_PG)), key=lambda p: len(set(rewards_PG[p])) == 1)
    return [size * p + g for p in sorted(prompts[: len(prompts) // count]) for g in range(size)]


def _displaced(
    plan: InspectionPlan, scope: Scope, loaded: LoadedCheckpoint, distributions: TokenDistributions, meter: _Meter
) -> tuple[dict[str, LogitMetrics], float]:
    """Every objective in logit space at one policy that has moved on, and how far that policy is."""
    own = loaded.own
    taken = loaded.remembered(own)
    rollouts = {objective.label: loaded.remembered(objective) for objective in loaded.objectives}
    with loaded.restored():
        take_steps(own, taken, plan.options.drift, loaded.source.step or 0, meter.at(STEP))
        distance = float(kl(distributions, token_distributions(own)).mean())
        found = {
            objective.label: measure_logits(
                objective, rollouts[objective.label], plan.yardstick, scope.rules, meter.at(LOOK)
            )
            for objective in loaded.objectives
        }
    return found, distance


def describe_target(spec: LcoKldSpec) -> str:
    """The yardstick in words."""
    below = "" if spec.negative_beta_scale == 1 else f" ({spec.negative_beta_scale * spec.beta:g} where A < 0)"
    shift = "" if spec.shift == "none" else ", drift-free shift"
    tilt = "" if spec.tilt == "exponential" else ", linear tilt"
    return f"pi* ~ pi_old exp(A / beta), beta = {spec.beta:g}{below}{tilt}{shift}"
