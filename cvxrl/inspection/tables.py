"""An inspection in text: its numbers as tables, and the whole of it on the terminal or plain in a pipe."""

from __future__ import annotations

import textwrap
from typing import TextIO

from cvxrl.inspection.findings import headline
from cvxrl.inspection.metrics import LogitMetrics, NoiseScaleInterval
from cvxrl.inspection.record import CheckpointMetrics, InspectRecord
from cvxrl.inspection.reuse_tables import reuse_table
from cvxrl.inspection.step_metrics import LineSearchMetrics, SharpnessMetrics
from cvxrl.report.document import WIDTH, Table, print_report
from cvxrl.report.format import NOTHING, fixed, percent, scientific, share, short, signed, to_error


def all_tables(record: InspectRecord) -> list[Table]:
    """Tables of a single checkpoint, or the trajectory over several and the tables of the last."""
    last = record.snapshots[-1]
    tables = [trajectory(record)] if len(record.snapshots) > 1 else []
    tables += [
        _logits(last, record.drift),
        _parameters(last),
        _bands(last),
        _updates(last),
        _line_search(last),
        reuse_table(last),
        _curvature(last),
        _cosines(last),
    ]
    return [table for table in tables if table.rows]


def trajectory(record: InspectRecord) -> Table:
    """One row per checkpoint and objective."""
    rows = []
    for checkpoint in record.snapshots:
        for number, o in enumerate(checkpoint.objectives):
            g, u, s = o.gradients, o.update, o.sharpness
            off = o.displaced or o.logits
            first = number == 0
            rows.append(
                [
                    str(checkpoint.step),
                    o.label,
                    headline(o),
                    share(checkpoint.correct) if first else "",
                    fixed(checkpoint.entropy) if first else "",
                    fixed(checkpoint.probability) if first else "",
                    short(g.qkv if g else None),
                    share(off.away if off else None),
                    scientific(u.kl if u else None),
                    _room(s),
                ]
            )
    columns = ("<step", "<objective", "<finding", "right", "entropy", "p(a)", "grad qkv", "away", "step KL", "room")
    note = (
        "p(a): mean probability of the sampled tokens. grad qkv: mean norm over query, key and value projections. "
        "away: tokens whose descent direction points away from their target"
        + (", after the drift" if record.drift else "")
        + ". step KL: of the next optimizer step. room: how often that step fits before the loss rises."
    )
    return Table("Over training", columns, rows, note)


def _logits(checkpoint: CheckpointMetrics, drift: int) -> Table:
    rows = []
    for o in checkpoint.objectives:
        for where, n in (("sampled", o.logits), ("moved", o.displaced)):
            if n is not None:
                rows.append([o.label, where, *_logit_cells(n)])
    columns = ("<objective", "<at", "convex", "smallest", "away", "clip", "p>0", "p>1", "cosine", "distance")
    moved = ""
    if checkpoint.displaced_kl is not None:
        own, far = checkpoint.displaced_by or checkpoint.objectives[0].label, short(checkpoint.displaced_kl, 2)
        moved = f" moved: after {drift} steps of {own}, KL {far} per token."
    note = (
        "Shares of the tokens that have a target. convex: the logits Hessian has no negative eigenvalue. smallest: "
        f"smallest eigenvalue, {_looked_at(checkpoint)}. "
        "away: pull away from their target. clip, p>0, p>1: gradient gone far from the target, by the clip or because "
        "the probability nears 0 or 1. cosine: of descent and direction to the target. distance: mean total variation "
        f"to the target.{moved}"
    )
    return Table("In logit space", columns, rows, note)


def _looked_at(checkpoint: CheckpointMetrics) -> str:
    """Whose eigenvalues `smallest` is of."""
    seen = [o.logits.eigenvalue_tokens for o in checkpoint.objectives if o.logits and o.logits.eigenvalue_tokens]
    if not seen or min(seen) == checkpoint.tokens:
        return "of all tokens" if seen else "of some tokens"
    return f"of {min(seen):,} sampled tokens of {checkpoint.tokens:,}"


def _logit_cells(n: LogitMetrics) -> list[str]:
    frozen = n.frozen_by
    return [
        share(n.convex),
        short(n.smallest, 2),
        share(n.away),
        share(frozen.get("clip", 0.0)),
        share(frozen.get("improbable", 0.0)),
        share(frozen.get("certain", 0.0)),
        fixed(n.cosine, 2),
        short(n.distance, 2),
    ]


def _parameters(checkpoint: CheckpointMetrics) -> Table:
    rows = []
    prompts = 0
    for o in checkpoint.objectives:
        g = o.gradients
        if g is not None:
            prompts = g.prompts
            rows.append(
                [
                    o.label,
                    short(g.norm),
                    short(g.qkv),
                    share(g.negative_share),
                    signed(g.sign_cosine, 2),
                    "none" if g.minibatch_cosine is None else signed(g.minibatch_cosine, 2),
                    _interval(g.noise_scale),
                ]
            )
    columns = ("<objective", "norm", "qkv", "negative", "cos(+,-)", "cos(batches)", "noise scale")
    note = (
        "negative: share of the norm from tokens with negative advantage; cos(+,-): their direction against the "
        "others'. cos(batches): of pairs of minibatches, those without a gradient left out. noise scale: prompts at "
        f"which noise and gradient are equally large, 95% interval; the batch has {prompts}."
    )
    return Table("In the parameters", columns, rows, note)


def _bands(checkpoint: CheckpointMetrics) -> Table:
    measured = [o for o in checkpoint.objectives if o.gradients is not None and o.gradients.bands]
    if not measured:
        return Table("", ())
    first = measured[0].gradients
    assert first is not None
    rows = []
    for index, band in enumerate(first.bands):
        shares = [o.gradients.bands[index].share for o in measured if o.gradients is not None]
        rows.append([f"{band.low:.1f} to {band.high:.1f}", share(band.tokens), *map(share, shares)])
    columns = ("<probability", "tokens", *(o.label for o in measured))
    note = f"Share of the gradient's norm by the sampled token's probability, on {first.band_completions} completions."
    return Table("Which tokens make the gradient", columns, rows, note)


def _updates(checkpoint: CheckpointMetrics) -> Table:
    rows = []
    for o in checkpoint.objectives:
        u, s = o.update, o.sharpness
        if u is not None:
            rows.append(
                [
                    o.label,
                    u.optimizer,
                    scientific(u.update_to_weight),
                    scientific(u.kl),
                    short(u.ratio["p99"]),
                    share(u.clipped),
                    share(u.ess_sequences),
                    scientific(u.surrogate, sign=True),
                    scientific(u.entropy_after - u.entropy_before, sign=True),
                    _room(s),
                ]
            )
    columns = ("<objective", "<adam", "|dw|/|w|", "KL", "r p99", "clipped", "ESS", "dE[rA]", "dH", "room")
    note = (
        "adam: optimizer state it starts from. KL: nats per token. r: probability ratio. clipped: beyond 1 -+ 0.2. "
        "ESS: effective sample size of the sequences. dE[rA]: reward surrogate. dH: entropy. room: how often the step "
        "fits before the loss is back at its start; below 1 it overshoots."
    )
    return Table("One optimizer step", columns, rows, note)


def _line_search(checkpoint: CheckpointMetrics) -> Table:
    """What a line search on the objective's own loss makes of the step whose room is known."""
    rows = []
    for o in checkpoint.objectives:
        found = None if o.sharpness is None else o.sharpness.line_search
        if found is not None:
            change = None if found.loss is None else found.loss - found.loss_before
            rows.append(
                [
                    o.label,
                    _room(o.sharpness),
                    scientific(found.slope, sign=True),
                    short(found.share) if found.share else "none",
                    str(found.evaluations),
                    scientific(change, sign=True),
                    _room(found),
                ]
            )
    columns = ("<objective", "room", "slope", "accepted", "tried", "change", "room then")
    note = (
        "slope: of the loss along the step at its start. accepted: share of the step, halved until the loss has fallen "
        "by its part of what the slope promises. change: of the loss there. room then: how often the accepted step "
        "fits before the loss is back at its start."
    )
    return Table("Line search along that step", columns, rows, note)


def _curvature(checkpoint: CheckpointMetrics) -> Table:
    rows = []
    for o in checkpoint.objectives:
        c = o.curvature
        if c is not None:
            rows.append(
                [
                    o.label,
                    to_error(c.largest, c.largest_error),
                    to_error(c.smallest, c.smallest_error),
                    to_error(c.trace, c.trace_error),
                ]
            )
    note = "Hessian of the loss in the parameters; ± bound of the eigenvalue, standard error of the trace."
    return Table("Curvature", ("<objective", "largest", "smallest", "trace"), rows, note)


def _cosines(checkpoint: CheckpointMetrics) -> Table:
    labels = list(checkpoint.cosines)
    rows = [[a, *(signed(checkpoint.cosines[a][b], 2) for b in labels)] for a in labels]
    return Table("Cosines between the gradients", ("<objective", *labels), rows if len(labels) > 1 else [])


def _room(numbers: SharpnessMetrics | LineSearchMetrics | None) -> str:
    if numbers is None or numbers.searched is None:
        return NOTHING
    if numbers.room is None:
        return f">{numbers.searched:g}"
    return short(numbers.room, 2) if numbers.room else f"<{short(numbers.searched, 1)}"


def _interval(value: NoiseScaleInterval) -> str:
    if value.value is None:
        return "not measurable"
    low = short(value.low)
    high = "inf" if value.high is None else short(value.high)
    return f"{short(value.value)} [{low}, {high}]"


def print_record(record: InspectRecord, stream: TextIO) -> None:
    """Write a header, every table, and what the numbers of the last checkpoint say."""
    last = record.snapshots[-1]
    print_report([*_header(record, last), ""], all_tables(record), _verdicts(last), stream)


def _header(record: InspectRecord, last: CheckpointMetrics) -> list[str]:
    where = "" if last.step is None else f", step {last.step}"
    lines = [
        f"weights   sha256 {last.policy[:12]}, {record.parameters:,} of them trained",
        f"rollouts  {last.prompts} prompts x {last.samples}, {last.tokens:,} tokens, {_score(last)}",
        f"target    {record.target}",
        *(f"note      {note}" for note in record.notes),
    ]
    # The path stays on one line, where it can be copied.
    return [f"policy    {record.path}{where}", *(part for line in lines for part in _wrapped(line, "", " " * 10))]


def _score(checkpoint: CheckpointMetrics) -> str:
    """The share that is right, or the mean reward where no grader is known."""
    return (
        f"mean reward {short(checkpoint.reward)}"
        if checkpoint.correct is None
        else f"{percent(checkpoint.correct)} right"
    )


def _wrapped(text: str, first: str, later: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=later)


def _verdicts(last: CheckpointMetrics) -> list[str]:
    lines = []
    for objective in last.objectives:
        own = " (the run's own)" if objective.own else ""
        lines.append(f"{objective.label}{own}: {objective.verdict[0]}")
        for sentence in objective.verdict[1:]:
            lines += _wrapped(sentence, "  - ", "    ")
    return lines
