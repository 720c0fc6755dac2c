"""The page of completions: whole, bounded, and text stays text whatever a completion says."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from browser import opened

from cvxrl.report import completions
from cvxrl.report.completions import Part, completions_page, run_page
from cvxrl.runs.jsonl import write_lines

HOSTILE = (
    "</script><script>alert('a')</script>",
    "<!--<script>",
    "<img src=x onerror=alert('b')>",
    "]]>\u2028\u2029\0\u202eabc",
    "\ud800 & &lt; \\u003c",
    '"}];alert("c");//',
)


def line(completion: str, **more: Any) -> dict[str, Any]:
    return {
        "id": "q",
        "prompt": "3+4?",
        "completion": completion,
        "answer": "7",
        "extracted": None,
        "correct": False,
        "strict": False,
        "reward": 0.0,
        "error": None,
        "truncated": False,
    } | more


def content(page: str) -> Any:
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_completions_stay_text(text: str) -> None:
    said = line(text, prompt=text, answer=text, extracted=text, error=text, id=text, token_texts=[text])
    page = completions_page(text, [text], [Part(text, [said], text)])
    assert page.count("<script") == page.count("</script") == 2
    assert "<img" not in page and "<!--" not in page
    (row,) = content(page)["rows"]
    assert all(row[name] == text for name in ("id", "prompt", "completion", "answer", "extracted", "error"))
    assert row["texts"] == [text] and content(page)["parts"] == [{"label": text, "note": text}]
    data = page[page.index('id="data">') : page.index("</script>")]
    assert data.isascii() and not {"&", "\0"} & set(data)


def test_the_browser_may_run_the_page_s_own_script_alone() -> None:
    page = completions_page("t", [], [Part("p", [line("a")])])
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page and "default-src 'none'" in page
    assert not re.findall(r"(?:src|href|url)\s*[=(]", page)


def test_lines_of_older_versions_are_read() -> None:
    older = {k: v for k, v in line("3+4=7").items() if k not in ("strict", "error", "truncated")}
    (row,) = content(completions_page("t", [], [Part("p", [older])]))["rows"]
    assert row["strict"] is None and row["completion"] == "3+4=7" and "texts" not in row


def test_numbers_that_json_does_not_have_are_unknown() -> None:
    values = line("a", token_texts=["a"], token_logprobs=[float("-inf")], reward=float("nan"))
    (row,) = content(completions_page("t", [], [Part("p", [values])]))["rows"]
    assert row["logprobs"] == [None] and row["reward"] is None


def test_long_texts_are_cut_and_said_to_be() -> None:
    long = line("x" * 50_000, token_texts=["x"] * 50_000, token_logprobs=[-0.1] * 50_000)
    page = completions_page("t", [], [Part("p", [long])])
    assert len(page) < 100_000 and content(page)["rows"][0]["cut"] == "30000 more characters are left out"


def test_a_page_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completions, "MOST_ROWS", 10)
    many = completions_page("t", [], [Part(f"step {i}", [line("a")] * 2) for i in range(20)])
    assert [p["label"] for p in content(many)["parts"]] == ["step 3", "step 7", "step 11", "step 15", "step 19"]
    assert "5 of 20 steps, evenly spaced" in many and len(content(many)["rows"]) == 10
    monkeypatch.setattr(completions, "MOST_BYTES", 1000)
    large = completions_page("t", [], [Part("p", [line("a" * 100)] * 8)])
    left = 8 - len(content(large)["rows"])
    assert 0 < left < 8 and f"{left} more completions would make the page too large" in large


def test_a_run_s_page_goes_through_its_steps(tmp_path: Path) -> None:
    assert run_page(tmp_path, "t") == ""
    folder = tmp_path / "rollouts"
    write_lines(folder / "step-000000.jsonl", [line("zero")])
    write_lines(folder / "step-000010.jsonl", [line("ten")])
    write_lines(folder / "train-000010.jsonl", [line("learnt", token_texts=["learnt"], token_advantages=[-0.5])])
    write_lines(folder / "diverged-000011.jsonl", [{"other": 1}])
    found = content(run_page(tmp_path, "t"))
    assert [p["label"] for p in found["parts"]] == ["step 0, evaluation", "step 10, training", "step 10, evaluation"]
    assert [r["completion"] for r in found["rows"]] == ["zero", "learnt", "ten"] and found["first"] == 2
    assert found["rows"][1]["advantages"] == [-0.5]


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1200])
def test_a_browser_filters_shades_and_goes_from_token_to_token(width: int, tmp_path: Path) -> None:
    right = line("3+4=7", correct=True, strict=True, extracted="7", reward=1.0)
    doubted = line("7 apples", correct=True, strict=False, extracted="7")
    spelt = {"token_texts": ["3", "+4", "<eos>"], "token_logprobs": [-0.001, -1.0, -5.0]}
    learnt = line("3+4", truncated=True, token_advantages=[0.0, -1.0, 2.0], **spelt)
    hostile = [line(text, token_texts=[text], token_logprobs=[-3.0]) for text in HOSTILE]
    parts = [Part("step 1, training", [learnt]), Part("step 1, evaluation", [right, doubted, *hostile])]
    file = tmp_path / "page.html"
    file.write_text(completions_page("Completions", [], parts), encoding="utf-8")
    with opened(file, width) as page:
        cards = page.locator("article")
        assert cards.count() == 2 + len(HOSTILE) and "8 of 9" in page.inner_text("#count")
        assert page.locator("article .text:not(.prompt)").nth(2).text_content() == HOSTILE[0]
        page.select_option("#verdict", "right")
        assert cards.count() == 2
        page.check("#disagree")
        assert cards.count() == 1 and "strict says wrong" in cards.inner_text()
        page.uncheck("#disagree")
        page.select_option("#verdict", "")
        page.fill("#search", "APPLES")
        assert cards.count() == 1
        page.fill("#search", "")
        page.select_option("#step", "0")
        kinds = [token.get_attribute("class") for token in page.locator(".text .token").all()]
        assert [kind.split()[1:] for kind in kinds if kind] == [[], ["p2"], ["p4"]]
        page.select_option("#shading", "advantage")
        kinds = [token.get_attribute("class") for token in page.locator(".text .token").all()]
        assert [kind.split()[1:] for kind in kinds if kind] == [[], ["down2"], ["up3"]]
        page.evaluate("document.activeElement.blur()")
        for key in ("j", "ArrowRight", "ArrowRight"):
            page.keyboard.press(key)
        assert page.inner_text("#detail") == 'token 2 of 3: "+4", probability 0.368, advantage \u22121'
        page.keyboard.press("Escape")
        page.keyboard.press("]")
        assert cards.count() == 2 + len(HOSTILE)
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
