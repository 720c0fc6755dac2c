"""The commands of README and docs/, taken out of the pages and run in the order in which they stand there."""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

README = ROOT / "README.md"
PAGES = (README, ROOT / "docs" / "compare.md", ROOT / "docs" / "inspect.md", ROOT / "docs" / "inspect_runs.md")
# Needs a network, or packages that the tests do not install.
ELSEWHERE = re.compile(r"^(pip |cvxrl .*(smollm2|Qwen/))", re.MULTILINE)
SMALL = "rollout: {prompts: 4, samples: 2, max_new_tokens: 12}\neval: {every: 50, prompts: 4, samples: 1}\n"
# In the place of `cvxrl`: the same with fewer values of a sweep; what it ended with is a line of `codes`.
SHIM = """#!{python}
import subprocess, sys
words = sys.argv[1:]
if "--vary" in words:
    at = words.index("--vary") + 1
    words[at] = ",".join(words[at].split(",")[:2])
done = subprocess.run([sys.executable, "-m", "cvxrl", *words])
with open("{codes}", "a") as codes:
    print(done.returncode, *sys.argv[1:], file=codes)
sys.exit(done.returncode)
"""


def blocks(page: Path) -> list[str]:
    """Code blocks without a language, which are the shell's; of them those with a command of ours."""
    fenced = re.findall(r"^```(.*?)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [
        block for language, block in fenced if not language and re.search(r"^\s*\(?(for |cvxrl )", block, re.MULTILINE)
    ]


def script(*pages: Path) -> str:
    """All blocks of the pages, one after the other, without what the machine that tests cannot have."""
    text = "".join(block for page in pages for block in blocks(page)).replace("\\\n", "")
    return "".join(line for line in text.splitlines(keepends=True) if not ELSEWHERE.match(line))


def commands(text: str) -> list[list[str]]:
    """Command lines of `cvxrl`, variables filled in, as a shell that only prints them has them."""
    printing = 'cvxrl() { printf "cvxrl "; printf "%q " "$@"; echo; }\n'
    done = subprocess.run(["bash", "-c", printing + text], cwd=ROOT, capture_output=True, text=True)
    lines = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("cvxrl ")]
    return [words[1:] for words in lines]


def run(text: str, folder: Path, stub: str | None = None) -> list[tuple[int, str]]:
    """Source the commands in a shell, whose last line says that it is still there; code and words of each command."""
    tool, codes = folder / "bin" / "cvxrl", folder / "codes"
    tool.parent.mkdir()
    tool.write_text(stub or SHIM.format(python=sys.executable, codes=codes))
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    (folder / "script.sh").write_text(text)
    environment = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    line = "source script.sh; echo the shell is open"
    done = subprocess.run(["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.stdout.endswith("the shell is open\n"), done.stdout + done.stderr
    if not codes.is_file():
        return []
    return [(int(code), words) for code, _, words in (row.partition(" ") for row in codes.read_text().splitlines())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_that_fails_leaves_the_reader_s_shell_open(page: Path, tmp_path: Path) -> None:
    run(script(page), tmp_path, "#!/bin/sh\nexit 2\n")


def test_every_recipe_of_the_readme_is_one(cvxrl: Any) -> None:
    found = commands(script(README))
    assert len(found) > 20 and {words[0] for words in found} == {"train", "compare", "eval", "inspect-grads"}
    for number, words in enumerate(words for words in found if words[0] == "train"):
        if number and "--set" not in words:
            continue  # a seed of the loop
        done = cvxrl("train", str(ROOT / words[1]), *(word for word in words[2:] if word != "--dry-run"), "--dry-run")
        assert done.code == 0, (words, done.err)


def test_runs_of_the_readme_do_not_get_into_each_other_s_way() -> None:
    """One folder, one recipe: what a later command resumes or compares is what an earlier one trained."""
    recipe_of: dict[str, tuple[str, ...]] = {}
    for words in commands(script(README)):
        if words[0] != "train" or "--dry-run" in words:
            continue
        sets = tuple(b for a, b in pairwise(words) if a == "--set")
        name = next((text[5:] for text in sets if text.startswith("name=")), Path(words[1]).stem)
        assert recipe_of.setdefault(name, sets) == sets, f"{name} is trained in two ways"
    steps = {text for sets in recipe_of.values() for text in sets if text.startswith("checkpoint.every=")}
    looked = [words for words in commands(script(README)) if words[0] == "inspect-grads" and "--step" in words]
    assert steps == {"checkpoint.every=4"} and looked
    for words in looked:
        name = Path(words[1]).parent.name
        assert "checkpoint.every=4" in recipe_of[name]
        assert all(int(step) % 4 == 0 for step in words[words.index("--step") + 1].split(","))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("pages", [(README,), PAGES[1:2], PAGES[2:3], PAGES[3:]], ids=lambda pages: pages[0].name)
def test_the_commands_work_one_after_the_other(pages: tuple[Path, ...], tmp_path: Path) -> None:
    (tmp_path / "recipes").mkdir()
    for file in (ROOT / "recipes").glob("math_*.yaml"):
        (tmp_path / "recipes" / file.name).write_text(f"extends: {file}\n{SMALL}train: {{steps: 40}}\n")
    first = "cvxrl train recipes/math_grpo.yaml\n" if pages[0] == README else ""
    ended = run(first + script(*pages), tmp_path)
    wrong = [(code, words) for code, words in ended if code and not (code == 3 and "--require" in words)]
    assert ended and not wrong, wrong
