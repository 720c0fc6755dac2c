"""The commands of README and docs/, taken out of the pages and run in the order in which they stand there."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import stat
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from forked import Forked
from helpers import ROOT

from cvxrl.imports import loading_libraries

README = ROOT / "README.md"
PAGES = (README, ROOT / "docs" / "compare.md", ROOT / "docs" / "inspect.md", ROOT / "docs" / "inspect_runs.md")
# Needs a network, packages that the tests do not install, runs of another program, or what is in the checkout alone.
ELSEWHERE = re.compile(r"^(pip |cvxrl .*(smollm2|Qwen/|docs/study/|trl_runs/|my_policy ))", re.MULTILINE)
SMALL = """rollout: {prompts: 4, samples: 2, max_new_tokens: 12}
eval: {every: 50, prompts: 4, samples: 1}
logging: {kl_sequences: 2}
"""
# Of the runs of a study.
SMALL_PLAN = {
    "train.steps": 4,
    "rollout.prompts": 4,
    "rollout.samples": 2,
    "rollout.max_new_tokens": 12,
    "eval.prompts": 4,
}
# Of a run whose command does not say; those that are looked into need the steps that are looked at.
STEPS = {"README.md": 12, "compare.md": 12, "inspect.md": 40, "inspect_runs.md": 40}
FAILING = "#!/bin/sh\nexit 2\n"
# In the place of `cvxrl`: asks this process, which has loaded all libraries, to fork one that runs the command.
ASKING = """#!{python} -SE
import json, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect("{address}")
    server.sendall((json.dumps(sys.argv[1:]) + "\\n").encode())
    code, said = json.loads(server.makefile().readline())
sys.stdout.write(said)
sys.exit(code)
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


def source(text: str, folder: Path, stub: str) -> subprocess.Popen[bytes]:
    """A shell that reads the commands as one at a terminal would, and then says, in `said`, that it is still there."""
    tool = folder / "bin" / "cvxrl"
    tool.parent.mkdir()
    tool.write_text(stub)
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    (folder / "script.sh").write_text(text)
    environment = {**os.environ, "PATH": f"{tool.parent}:{os.environ['PATH']}"}
    line = ["bash", "-c", "source script.sh; echo the shell is open"]
    with (folder / "said").open("wb") as out:  # a pipe that nobody reads fills up
        return subprocess.Popen(line, cwd=folder, env=environment, stdout=out)


def serve(server: socket.socket, shell: subprocess.Popen[bytes], folder: Path) -> list[tuple[int, list[str], str]]:
    """Run what the shell asks for until it ends; exit code, words and complaints of each command."""
    ended = []
    server.settimeout(0.2)
    while shell.poll() is None:
        try:
            asking, _ = server.accept()
        except TimeoutError:
            continue
        with asking, (folder / "out").open("wb+") as out, (folder / "err").open("wb+") as err:
            words = json.loads(asking.makefile().readline())
            for at in (at for at, word in enumerate(words) if at and words[at - 1] == "--vary"):
                words[at] = ",".join(words[at].split(",")[:2])  # two values of a sweep are enough
            command = [sys.executable, "-m", "cvxrl", *words]
            code = Forked(command, stdout=out, stderr=err, env=dict(os.environ)).wait()
            said, complained = ((folder / name).read_text(errors="replace") for name in ("out", "err"))
            asking.sendall((json.dumps([code, said]) + "\n").encode())
            ended.append((int(code or 0), words, complained))
    return ended


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_command_that_fails_leaves_the_reader_s_shell_open(page: Path, tmp_path: Path) -> None:
    source(script(page), tmp_path, FAILING).wait()
    said = (tmp_path / "said").read_text()
    assert said.endswith("the shell is open\n"), said


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
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_work_one_after_the_other(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loading_libraries():
        import cvxrl.engine.session  # noqa: F401
    starting = SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr("cvxrl.comparison.train.subprocess", starting)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes" / "plans").mkdir(parents=True)
    for file in [*(ROOT / "recipes").glob("math_*.yaml"), *(ROOT / "recipes").glob("reuse_*.yaml")]:
        (tmp_path / "recipes" / file.name).write_text(f"extends: {file}\n{SMALL}train: {{steps: {STEPS[page.name]}}}\n")
    plan = yaml.safe_load((ROOT / "recipes" / "plans" / "small.yaml").read_text())
    plan["set"] |= SMALL_PLAN
    (tmp_path / "recipes" / "plans" / "small.yaml").write_text(yaml.safe_dump(plan))
    first = "cvxrl train recipes/math_grpo.yaml\n" if page == README else ""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "server"))
        server.listen()
        shell = source(
            first + script(page), tmp_path, ASKING.format(python=sys.executable, address=tmp_path / "server")
        )
        ended = serve(server, shell, tmp_path)
    wrong = [each for each in ended if each[0] and not (each[0] == 3 and "--require" in each[1])]
    assert ended and not wrong, "\n".join(f"{code}: {shlex.join(words)}\n{why}" for code, words, why in wrong)
    assert (tmp_path / "said").read_text().endswith("the shell is open\n")
