"""The documentation site: every page has its place, links lead somewhere here and on GitHub, tables follow the code."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from cvxrl.recipe.advantage import AdvantageSpec
from cvxrl.recipe.base import section_classes
from cvxrl.recipe.load import load_recipe
from cvxrl.recipe.objective import ObjectiveSpec
from cvxrl.recipe.papers import index
from cvxrl.recipe.schema import Recipe

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
CONFIGURATION = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
GUIDE = (DOCS / "from_trl_verl.md").read_text()


def without_blocks(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Names of a page's headings that GitHub and the site's builder agree on."""
    found = set()
    for title in re.findall(r"^#+ (.+)$", without_blocks(text), re.MULTILINE):
        bare = re.sub(r"[^\w\s-]", "", title.replace("`", "")).strip().lower()
        on_github, on_the_site = bare.replace(" ", "-"), re.sub(r"[-\s]+", "-", bare)
        if on_github == on_the_site:
            found.add(on_github)
    return found


def dead(page: Path, text: str) -> Iterator[str]:
    """Links of a page that lead nowhere, on GitHub or on the site."""
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", without_blocks(text))):
        if link.startswith(("https://", "http://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        outside = page.parent == DOCS and not target.is_relative_to(DOCS)
        if (
            outside
            or (name and not target.exists())
            or (anchor and anchor not in anchors(text if target == page else target.read_text(encoding="utf-8")))
        ):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page: Path) -> None:
    assert list(dead(page, page.read_text(encoding="utf-8"))) == []


def test_a_dead_link_is_found() -> None:
    text = "# A title: *one*\n\n[a](eval.md#completions-to-read), [b](#a-title-one), [c](figures/architecture.png)\n\n"
    assert list(dead(DOCS / "x.md", text)) == []
    wrong = "[a](eval.md#gone), [b](#a-title), [c](gone.md), [d](../README.md), `[e](in_code.md)`"
    assert list(dead(DOCS / "x.md", text + wrong)) == ["eval.md#gone", "#a-title", "gone.md", "../README.md"]
    assert list(dead(ROOT / "x.md", "[d](README.md), [e](docs/eval.md#completions-to-read)")) == []


def test_every_page_has_its_place() -> None:
    def pages(nav: Any) -> Iterator[str]:
        for entry in nav:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else pages(value)

    listed = list(pages(CONFIGURATION["nav"]))
    assert sorted(listed) == sorted(page.name for page in DOCS.glob("*.md")) and listed[0] == "index.md"


def test_the_paper_index_is_current() -> None:
    text = (DOCS / "papers.md").read_text(encoding="utf-8")
    assert text == index(), "python -m cvxrl.recipe.papers > docs/papers.md"
    kinds = [spec.model_fields["kind"].default for u in (ObjectiveSpec, AdvantageSpec) for spec in section_classes(u)]
    assert len(kinds) > 20 and [kind for kind in kinds if kind != "callable" and f"| `{kind}` |" not in text] == []
    headers = "".join(file.read_text() for file in (ROOT / "recipes").glob("*.yaml"))
    numbers = set(re.findall(r"arXiv (\d{4}\.\d{5})", headers))
    assert len(numbers) > 10 and [number for number in numbers if number not in text] == []


def rows() -> Iterator[list[str]]:
    """Cells of the guide's tables: TRL's setting, verl's, ours, a remark."""
    for line in GUIDE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == 4 and cells[0] != "TRL":
            yield cells


def test_fields_of_the_guide_are_fields() -> None:
    def known(key: str) -> bool:
        sections = [Recipe]
        for part in key.split("."):
            fields = [section.model_fields[part] for section in sections if part in section.model_fields]
            if not fields:
                return False
            sections = [inner for field in fields for inner in section_classes(field.annotation)]  # type: ignore[misc]
        return True

    named = [key for cells in rows() for key in re.findall(r"`([\w.]+)`", cells[2])]
    assert len(named) > 35 and [key for key in named if not known(key)] == []
    assert not known("rollout.prompt") and known("objective.clip_low")


def test_the_recipe_of_the_guide_is_one(tmp_path: Path) -> None:
    file = tmp_path / "as_in_trl.yaml"
    file.write_text(re.findall(r"^```yaml\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)[0])
    recipe = load_recipe(file)
    assert recipe.rollout.prompts * recipe.rollout.samples == 64
    assert recipe.train.inner_epochs * recipe.train.minibatches * recipe.train.steps == 800


@pytest.mark.slow
def test_trl_has_the_settings_of_the_guide() -> None:
    config = pytest.importorskip("trl", reason="trl is not installed: pip install -e .[bench]").GRPOConfig
    named = {name for cells in rows() if "of the trainer" not in cells[0] for name in re.findall(r"`(\w+)", cells[0])}
    assert len(named) > 30 and {name for name in named if name not in config.__dataclass_fields__} == set()


@pytest.mark.slow
def test_the_site_is_built(tmp_path: Path) -> None:
    pytest.importorskip("zensical", reason="zensical is not installed: pip install -e .[docs]")
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    (tmp_path / "cvxrl").symlink_to(ROOT / "cvxrl")
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    page = {name: (tmp_path / "site" / f"{name}.html").read_text() for name in ("index", "api", "recipe")}
    assert "<math" in page["index"] and "$$" not in page["index"]
    assert 'id="cvxrl.api.train"' in page["api"]
    assert "https://fonts." not in page["recipe"] and "cdn" not in page["recipe"]
