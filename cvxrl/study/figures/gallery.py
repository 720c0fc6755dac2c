"""Every figure of a study with its title and caption, in the order in which they are read."""

from __future__ import annotations

from collections.abc import Mapping

from cvxrl.comparison.figures.gallery import all_figures as comparison_figures
from cvxrl.report.figure import FORMATS, Shown, to_file
from cvxrl.study.choices import Choice
from cvxrl.study.collected import Collected
from cvxrl.study.plan import Study
from cvxrl.study.verdict import Judged


def all_figures(study: Study, chosen: Mapping[str, Choice], collected: Collected, judged: Judged) -> list[Shown]:
    """The figures that this study has runs for."""
    return comparison_figures(judged.sweep) if judged.sweep else []


def figure_files(study: Study, chosen: Mapping[str, Choice], collected: Collected, judged: Judged) -> dict[str, bytes]:
    """File name -> content: each figure as PNG, to look at, and as SVG and PDF, to print."""
    files: dict[str, bytes] = {}
    for shown in all_figures(study, chosen, collected, judged):
        files |= {f"{shown.slug}{suffix}": to_file(shown.figure, suffix) for suffix in FORMATS}
    return files
