"""docs/tutorial.md works as it is printed, from the first line to the last, with fewer steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
# What makes the runs small; all else is as printed.
SMALL = {
    "steps: 20": "steps: 2",
    "every: 10, prompts: 64": "every: 2, prompts: 4, samples: 1",
    "--questions 64": "--questions 4",
}
ROLLOUT = "rollout: {prompts: 2, samples: 2, max_new_tokens: 12}\n"


def blocks(language: str) -> list[str]:
    fenced = re.findall(r"^```(.*?)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    return [block for name, block in fenced if name == language]


@pytest.fixture
def small(forked: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # Drawing takes longer than all of these runs.
    monkeypatch.setattr("cvxrl.comparison.figures.gallery.all_figures", lambda _: [])


def write(tmp_path: Path) -> None:
    """The reader's files, in the folder that the test runs in."""
    exec(compile(blocks("python")[0], "tutorial.md", "exec"), {})
    names = re.findall(r"`(mine\w*\.yaml)`:\n\n```yaml", TEXT)
    recipes = blocks("yaml")
    assert len(names) == len(recipes) == 3 and len((tmp_path / "sums.jsonl").read_text().splitlines()) == 2000
    for name, text in zip(names, recipes, strict=True):
        for shown, short in SMALL.items():
            text = text.replace(shown, short)
        (tmp_path / name).write_text(text + (ROLLOUT if name == "mine.yaml" else ""))


def test_every_recipe_of_it_is_one(cvxrl: Any, tmp_path: Path) -> None:
    write(tmp_path)
    for file in sorted(tmp_path.glob("mine_*.yaml")):  # both extend the third
        done = cvxrl("train", str(file), "--dry-run")
        assert done.code == 0, (file, done.err)


# In the quick set, each of these commands is tried by tests of its own.
@pytest.mark.slow
def test_every_command_works(small: None, cvxrl: Any, tmp_path: Path) -> None:
    write(tmp_path)
    commands = [shlex.split(line) for block in blocks("") for line in block.splitlines()]
    assert len(commands) == 7 and {words[0] for words in commands} == {"cvxrl"}
    for words in commands:
        line = shlex.join(words)
        for shown, short in SMALL.items():
            line = line.replace(shown, short)
        done = cvxrl(*shlex.split(line)[1:])
        assert done.code == 0 or (done.code == 3 and "--require" in words), (words, done.out, done.err)
    for made in ("before/completions.html", "outputs/mine_grpo/seed-0/report/completions.html", "report.html"):
        assert (tmp_path / made).is_file(), made
    assert {path.name for path in (tmp_path / "outputs" / "mine_lco_kld").iterdir()} == {f"seed-{i}" for i in range(3)}
