"""What a study's own rule says of its confirmatory runs, once all of them have ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cvxrl.comparison.gate import Gate, Verdict, judge
from cvxrl.comparison.options import Options
from cvxrl.comparison.result import Comparison, build
from cvxrl.comparison.run import Run, is_scored
from cvxrl.comparison.study import Study
from cvxrl.comparison.study_stages import Choice, Setting
from cvxrl.report.document import Table
from cvxrl.report.format import number


@dataclass(frozen=True)
class Judged:
    """A finished study.

    Attributes:
        verdict: of the first rule whose requirements hold, or the plan's `otherwise`.
        rules: requirements of every rule, with what they came to.
        best: confirmatory runs at the chosen values.
        sweep: all confirmatory runs.
    """

    verdict: str
    rules: list[tuple[str, list[Verdict]]]
    best: Comparison
    sweep: Comparison


def missing(found: Sequence[tuple[Setting, Sequence[Run]]]) -> int:
    """Confirmatory runs that have not ended."""
    return sum(len(setting.seeds) - sum(is_scored(run) for run in runs) for setting, runs in found)


def judge_study(study: Study, chosen: dict[str, Choice], found: Sequence[tuple[Setting, Sequence[Run]]]) -> Judged:
    """Hold every rule against the confirmatory runs; all of them have ended.

    Args:
        study: the plan.
        chosen: values of the tuning stage.
        found: runs of every confirmatory setting.
    """
    at_best = [run for setting, runs in found if setting.value == chosen[setting.label].value for run in runs]
    every = [run for _, runs in found for run in runs]
    base = study.labels[0]
    plain = Options(confidence=study.confidence, baseline=base, allow_diff=True)
    best = build(at_best, plain)
    values = {label: choice.value for label, choice in chosen.items()}
    sweep = build(every, Options(confidence=study.confidence, allow_diff=True, vary=(study.vary,)), best=values)

    def held(gate: Gate) -> Verdict:
        return judge(gate, sweep if gate.swept else best)  # only runs at several values tell where a method breaks

    rules = [
        (rule.verdict, [held(gate) for gate in gates]) for rule, gates in zip(study.rules, study.gates, strict=True)
    ]
    verdict = next((name for name, results in rules if all(r.met for r in results)), study.otherwise)
    return Judged(verdict, rules, best, sweep)


def choices_table(study: Study, chosen: dict[str, Choice]) -> Table:
    """Chosen values and the candidates that they were chosen from."""
    rows = []
    for label, choice in chosen.items():
        others = "\n".join(f"{name}: {number(score)}" for name, score in choice.scores.items())
        settings = ", ".join(f"{key}={value}" for key, value in choice.settings.items()) or "as it is"
        rows.append([label, f"{choice.value:g}", settings, others])
    note = f"Seeds {study.tuning.seeds}, which are not reported again; chosen by the highest {study.tuning.by}."
    return Table(f"Tuning of {study.vary}", ["<method@regime", "chosen", "<setting", f"<{study.tuning.by}"], rows, note)


def rules_table(judged: Judged) -> Table:
    """Every requirement with both of its sides."""
    rows = []
    for name, results in judged.rules:
        for index, result in enumerate(results):
            word = "met" if result.met else "unfinished" if result.unfinished else "not met"
            rows.append(["" if index else name, result.text, number(result.left), word])
    return Table(
        f"Verdict: {judged.verdict}", ["<rule", "<requirement", "left side", "<"], rows, "The first rule that holds."
    )


def to_document(study: Study, chosen: dict[str, Choice], judged: Judged) -> dict[str, Any]:
    """The study's part of the JSON document."""
    return {
        "plan": study.model_dump(mode="json"),
        "chosen": {label: choice.model_dump(mode="json") for label, choice in chosen.items()},
        "verdict": judged.verdict,
        "rules": [
            {"verdict": name, "requirements": [vars(result) for result in results]} for name, results in judged.rules
        ],
    }
