"""A judged study as one JSON document."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cvxrl.comparison.export import to_document as comparison_document
from cvxrl.study.choices import Choice
from cvxrl.study.plan import Study
from cvxrl.study.verdict import Judged


def to_document(study: Study, chosen: Mapping[str, Choice], judged: Judged) -> dict[str, Any]:
    """The plan, what was chosen, every rule with its requirements, and the comparisons that they were held against."""
    rules = [{"verdict": name, "requirements": [vars(result) for result in results]} for name, results in judged.rules]
    return {
        "study": {
            "plan": study.model_dump(mode="json"),
            "chosen": {label: choice.model_dump(mode="json") for label, choice in chosen.items()},
            "verdict": judged.verdict,
            "rules": rules,
        },
        "best": comparison_document(judged.best, []) if judged.best else None,
        "sweep": comparison_document(judged.sweep, []) if judged.sweep else None,
        "grids": {name: comparison_document(grid, []) for name, grid in judged.grids.items()},
    }
