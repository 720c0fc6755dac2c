"""The page of an evaluation: beside its EVAL.json, or where the user says, also of what is stored."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cvxrl.evaluation.folder import read_record, read_samples
from cvxrl.evaluation.page import evaluation_page, spelt
from cvxrl.runs.jsonl import write_lines


def rows(page: Path) -> list[dict[str, Any]]:
    found = re.search(r'id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    values: list[dict[str, Any]] = json.loads(found[1])["rows"]
    return values


def test_more_completions_keep_tokens_of_fewer_questions() -> None:
    assert spelt(5, 2) == {(q, s) for q in range(5) for s in range(2)}
    before: set[int] | None = None
    for samples in (1, 3, 4, 16, 64, 256, 1000):
        kept = spelt(1319, samples)
        questions = {q for q, _ in kept}
        assert len(kept) <= 256 and 0 in questions and (before is None or questions <= before)
        before = questions
    assert len(spelt(1319, 1)) == 165 and max(q for q, _ in spelt(1319, 1)) == 8 * 164


def test_an_evaluation_leaves_a_page(cvxrl: Any, tmp_path: Path) -> None:
    out, copy = tmp_path / "out", tmp_path / "copy.html"
    ask = ("--ckpt", "package:cvxrl/assets/forgetful", "--task", "carrying-sums", "--questions", "4", "--samples", "2")
    done = cvxrl("eval", *ask, "--out", str(out))
    assert done.code == 0 and str(out / "completions.html") in done.out
    found = rows(out / "completions.html")
    samples = read_samples(out / "samples.jsonl")
    assert [row["completion"] for row in found] == [s.completion for s in samples] and len(found) == 8
    assert all(len(row["texts"]) == len(row["logprobs"]) == s.tokens for row, s in zip(found, samples, strict=True))
    done = cvxrl("eval", "--from", str(out / "EVAL.json"), "--html", str(copy))
    assert done.code == 0 and copy.read_text() == (out / "completions.html").read_text()
    (out / "samples.jsonl").unlink()
    done = cvxrl("eval", "--from", str(out / "EVAL.json"), "--html", str(copy))
    assert done.code == 2 and "keep samples.jsonl beside its EVAL.json" in done.err


def test_an_evaluation_of_a_run_has_a_page_too(cvxrl: Any, tmp_path: Path) -> None:
    run, page = tmp_path / "run", tmp_path / "page.html"
    ask = ("--ckpt", "package:cvxrl/assets/forgetful", "--task", "carrying-sums", "--questions", "2", "--samples", "1")
    assert cvxrl("eval", *ask, "--out", str(run / "evals")).code == 0
    record = json.loads((run / "evals" / "EVAL.json").read_text()) | {"step": 7}
    (run / "evals" / "step-000007.json").write_text(json.dumps(record))
    shown = read_samples(run / "evals" / "samples.jsonl")[:1]
    (run / "evals" / "samples.jsonl").unlink()
    write_lines(run / "rollouts" / "step-000007.jsonl", (s.readable() for s in shown))
    assert cvxrl("eval", "--from", str(run / "evals" / "step-000007.json"), "--html", str(page)).code == 0
    assert len(rows(page)) == 1 and "step 7, evaluation" in page.read_text()


def test_doubtful_completions_are_among_those_shown(tmp_path: Path, cvxrl: Any) -> None:
    ask = ("--ckpt", "package:cvxrl/assets/forgetful", "--task", "carrying-sums", "--questions", "1", "--samples", "1")
    assert cvxrl("eval", *ask, "--out", str(tmp_path)).code == 0
    (one,), record = read_samples(tmp_path / "samples.jsonl"), read_record(tmp_path / "EVAL.json")
    many = [one.model_copy(update={"question": q, "correct": True, "strict": q not in (777, 991)}) for q in range(1000)]
    wide = record.model_copy(update={"sampling": record.sampling.model_copy(update={"questions": 1000})})
    page = tmp_path / "page.html"
    page.write_text(evaluation_page(wide, many), encoding="utf-8")
    found = rows(page)
    assert sum(row["strict"] is False for row in found) == 2 and 250 < len(found) <= 500
    assert f"{len(found)} of 1000 completions are shown" in page.read_text()


def test_tokens_that_were_not_kept_are_not_in_the_file(tmp_path: Path, cvxrl: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("cvxrl.evaluation.page._SPELT", 2)
    ask = ("--ckpt", "package:cvxrl/assets/forgetful", "--task", "carrying-sums", "--questions", "4", "--samples", "1")
    assert cvxrl("eval", *ask, "--out", str(tmp_path)).code == 0
    kept = ["token_texts" in json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert kept == [True, False, True, False]


def test_samples_of_older_versions_are_read(tmp_path: Path, cvxrl: Any) -> None:
    ask = ("--ckpt", "package:cvxrl/assets/forgetful", "--task", "carrying-sums", "--questions", "2", "--samples", "1")
    assert cvxrl("eval", *ask, "--out", str(tmp_path)).code == 0
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(_without(json.loads(line))) + "\n" for line in file.read_text().splitlines()))
    assert [s.token_texts for s in read_samples(file)] == [None, None]
    page = tmp_path / "page.html"
    assert cvxrl("eval", "--from", str(tmp_path / "EVAL.json"), "--html", str(page)).code == 0
    assert all("texts" not in row for row in rows(page))


def _without(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if not key.startswith("token_")}
