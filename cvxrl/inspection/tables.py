"""The numbers of an inspection as tables."""

from __future__ import annotations

from cvxrl.inspection.reading import headline
from cvxrl.inspection.record import InspectRecord, Interval, LogitNumbers, SharpnessNumbers, Snapshot
from cvxrl.report.document import Table
from cvxrl.report.format import NOTHING, fixed, scientific, share, short, signed


def all_tables(record: InspectRecord) -> list[Table]:
    """Tables of a single checkpoint, or the trajectory over several and the tables of the last."""
    last = record.snapshots[-1]
    tables = [trajectory(record)] if len(record.snapshots) > 1 else []
    tables += [
        _logits(last, record.drift),
        _parameters(last),
        _bands(last),
        _updates(last),
        _curvature(last),
        _cosines(last),
    ]
    return [table for table in tables if table.rows]


def trajectory(record: InspectRecord) -> Table:
    """One row per checkpoint and objective."""
    rows = []
    for snapshot in record.snapshots:
        for number, o in enumerate(snapshot.objectives):
            g, u, s = o.gradients, o.update, o.sharpness
            off = o.displaced or o.logits
            first = number == 0
            rows.append(
                [
                    str(snapshot.step) if first else "",
                    share(snapshot.correct) if first else "",
                    fixed(snapshot.entropy) if first else "",
                    fixed(snapshot.probability) if first else "",
                    o.label,
                    short(g.qkv if g else None),
                    share(off.away if off else None),
                    short(u.kl if u else None),
                    _room(s),
                    headline(o),
                ]
            )
    columns = ("step", "right", "entropy", "p(a)", "<objective", "grad qkv", "away", "step KL", "room", "<reading")
    note = (
        "p(a): mean probability of the sampled tokens. grad qkv: mean norm over query, key and value projections. "
        "away: tokens whose descent direction points away from their target"
        + (", after the drift" if record.drift else "")
        + ". step KL: of the next optimizer step. room: how often that step fits before the loss rises."
    )
    return Table("Over training", columns, rows, note)


def _logits(snapshot: Snapshot, drift: int) -> Table:
    rows = []
    for o in snapshot.objectives:
        for where, n in (("sampled", o.logits), ("moved", o.displaced)):
            if n is not None:
                rows.append([o.label, where, *_logit_cells(n)])
    columns = ("<objective", "<at", "convex", "smallest", "away", "clip", "p>0", "p>1", "cosine", "distance")
    moved = ""
    if snapshot.displaced_kl is not None:
        own, far = snapshot.objectives[0].label, short(snapshot.displaced_kl, 2)
        moved = f" moved: after {drift} steps of {own}, KL {far} per token."
    note = (
        "Shares of the tokens that have a target. convex: the logits Hessian has no negative eigenvalue. smallest: "
        "smallest eigenvalue of any token. "
        "away: pull away from their target. clip, p>0, p>1: gradient gone far from the target, by the clip or because "
        "the probability nears 0 or 1. cosine: of descent and direction to the target. distance: mean total variation "
        f"to the target.{moved}"
    )
    return Table("In logit space", columns, rows, note)


def _logit_cells(n: LogitNumbers) -> list[str]:
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


def _parameters(snapshot: Snapshot) -> Table:
    rows = []
    prompts = 0
    for o in snapshot.objectives:
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
                    signed(g.minibatch_cosine, 2),
                    _interval(g.noise_scale),
                ]
            )
    columns = ("<objective", "norm", "qkv", "negative", "cos(+,-)", "cos(batches)", "noise scale")
    note = (
        "negative: share of the norm from tokens with negative advantage; cos(+,-): their direction against the "
        "others'. noise scale: prompts at which noise and gradient are equally large, 95% interval; the batch has "
        f"{prompts}."
    )
    return Table("In the parameters", columns, rows, note)


def _bands(snapshot: Snapshot) -> Table:
    measured = [o for o in snapshot.objectives if o.gradients is not None and o.gradients.bands]
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


def _updates(snapshot: Snapshot) -> Table:
    rows = []
    for o in snapshot.objectives:
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


def _curvature(snapshot: Snapshot) -> Table:
    rows = []
    for o in snapshot.objectives:
        c = o.curvature
        if c is not None:
            rows.append(
                [
                    o.label,
                    f"{short(c.largest)} ± {scientific(c.largest_error, 0)}",
                    f"{short(c.smallest)} ± {scientific(c.smallest_error, 0)}",
                    f"{short(c.trace)} ± {short(c.trace_error, 2)}",
                ]
            )
    note = "Hessian of the loss in the parameters; ± bound of the eigenvalue, standard error of the trace."
    return Table("Curvature", ("<objective", "largest", "smallest", "trace"), rows, note)


def _cosines(snapshot: Snapshot) -> Table:
    labels = list(snapshot.cosines)
    rows = [[a, *(signed(snapshot.cosines[a][b], 2) for b in labels)] for a in labels]
    return Table("Cosines between the gradients", ("<objective", *labels), rows if len(labels) > 1 else [])


def _room(numbers: SharpnessNumbers | None) -> str:
    if numbers is None:
        return NOTHING
    if numbers.room is None:
        return f">{numbers.searched:g}"
    return short(numbers.room, 2) if numbers.room else f"<{short(numbers.searched, 1)}"


def _interval(value: Interval) -> str:
    if value.value is None:
        return "not measurable"
    low = short(value.low)
    high = "inf" if value.high is None else short(value.high)
    return f"{short(value.value)} [{low}, {high}]"
