"""The smallest runs there are, through every command: one prompt, one sample, one step, one seed, no success."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ONE = ("eval.prompts=1", "eval.samples=1", "train.steps=1", "rollout.prompts=1", "rollout.samples=2")
NEVER_RIGHT = ("task.extract={kind: regex, pattern: '(never)'}", "eval.samples=1", "train.steps=1", "eval.prompts=2")
FOUR_ROWS = (
    "task.source={kind: dataset, path: four.jsonl, prompt_field: q, answer_field: a}",
    *("train.steps=1", "rollout.prompts=2", "rollout.samples=2"),
)
ONE_EVALUATION = (*ONE, "eval.prompts=3", "train.steps=2", "eval.every=2")


def sets(overrides: tuple[str, ...]) -> list[str]:
    return [part for text in (*overrides, "rollout.max_new_tokens=12") for part in ("--set", text)]


def strict(text: str) -> Any:
    """A JSON document, without the NaN and Infinity that only Python reads."""

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in (FOUR_ROWS, NEVER_RIGHT, ONE_EVALUATION)]


@pytest.mark.parametrize("case", [ONE, *SLOW], ids=["one", "4 rows", "no success", "one evaluation"])
def test_the_smallest_runs_pass_through_every_command(case: tuple[str, ...], cvxrl: Any, tmp_path: Path) -> None:
    rows = (f'{{"q": "{a}+{b}?", "a": "{a + b}"}}\n' for a, b in ((1, 1), (1, 2), (2, 2), (2, 1)))
    (tmp_path / "four.jsonl").write_text("".join(rows))  # one of which is held out
    done = cvxrl("train", "smoke", *sets(case))
    assert done.code == 0, done.err
    alone = case in (ONE, FOUR_ROWS)
    assert ("error needs 2 prompts" in done.out) == alone and "nan" not in done.out
    lines = [line for line in done.out.splitlines() if "held-out accuracy" in line]
    assert lines and ("±" in lines[0]) != alone
    result = strict(cvxrl("train", "smoke", *sets(case), "--resume", "--json").out)["result"]
    assert (result["eval/stderr"] is None) == alone
    for file in ("run.json", "metrics.jsonl", "evals/step-000000.json"):
        text = (tmp_path / "outputs" / "smoke" / "seed-0" / file).read_text()
        assert [strict(line) for line in (text.splitlines() if file.endswith("l") else [text])]
    kinds = ("csv", "md") if case is ONE else ("csv", "md", "html")  # figures take seconds
    files = [part for kind in kinds for part in (f"--{kind}", f"all.{kind}")]
    compared = cvxrl("compare", "outputs", "--json", *files)
    assert compared.code == 2 and "1 scored seed" in compared.err  # the rest is written all the same
    assert strict(compared.out)["methods"][0]["scores"] == [result["eval/accuracy"]]
    for kind in ("csv", "md"):
        assert "nan" not in (tmp_path / f"all.{kind}").read_text().lower()
    asked = ("eval", "--ckpt", "outputs/smoke/seed-0", "--questions", "1")
    assert strict(cvxrl(*asked, "--json").out)["results"]["accuracy"]["stderr"] is None
    said = cvxrl(*asked, "--overwrite").out
    assert "error needs 2 prompts" in said and "n/a" not in said and "nan" not in said
