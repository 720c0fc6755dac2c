"""A page of completions to read: one file without a network, safe whatever a completion says, bounded in size.

What completions say is JSON inside the page, which its script puts there as text. The browser runs no other script: the
page's policy names that one by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from cvxrl.report.document import STYLE, html_head
from cvxrl.runs.files import finite
from cvxrl.runs.jsonl import read_lines

MOST_BYTES = 8_000_000  # of the completions of a page
MOST_ROWS = 1000
_MOST_LETTERS = 20_000  # of a text
_MOST_TOKENS = 4000  # of a completion
_HERE = Path(__file__).parent
_TRAINING = "Of one prompt of the step, the first whose rewards differ: from the lowest to the highest reward."
_CONTROLS = """<form id="controls" hidden aria-label="What is shown">
<label class="wide">Step <select id="step"><option value="">all</option></select></label>
<button type="button" id="before" aria-label="Step before">&larr;</button>
<button type="button" id="after" aria-label="Step after">&rarr;</button>
<label>Verdict <select id="verdict"><option value="">right and wrong</option><option>right</option>
<option>wrong</option></select></label>
<label><input type="checkbox" id="truncated"> truncated</label>
<label><input type="checkbox" id="disagree"> graders disagree</label>
<label><input type="checkbox" id="error"> grader error</label>
<label>Shading <select id="shading"><option>probability</option><option>advantage</option><option>none</option>
</select></label>
<label class="wide">Search <input type="search" id="search" autocomplete="off"></label>
<output id="count" aria-live="polite"></output>
</form>
<div id="legend"></div>
<p class="note" id="about"></p>
<p class="note" id="keys"><kbd>j</kbd> <kbd>k</kbd> next and previous completion, <kbd>&larr;</kbd> <kbd>&rarr;</kbd>
its tokens, <kbd>[</kbd> <kbd>]</kbd> step, <kbd>/</kbd> search</p>
<noscript><p class="problem">This page needs JavaScript; the completions are in the JSON lines beside it.</p></noscript>
<main id="list"></main>
<button type="button" id="more" hidden></button>
<div id="detail" role="status"></div>
"""


@dataclass(frozen=True)
class Part:
    """Completions that belong together.

    Attributes:
        label: what is chosen on the page, e.g. `step 10, evaluation`.
        completions: with the keys of `cvxrl.evaluation.record.Sample.readable`, and perhaps `token_advantages`; a key
            that an older version did not write is taken for unknown.
        note: how they were chosen.
    """

    label: str
    completions: Sequence[Mapping[str, Any]]
    note: str = ""


def completions_page(title: str, notes: Sequence[str], parts: Sequence[Part]) -> str:
    """Write the page.

    Args:
        title: its heading.
        notes: what there is to say before.
        parts: in order; the last is shown first. Where there are too many completions, those of evenly spaced parts
            stay; what of these is beyond `MOST_BYTES` is left out, and said.
    """
    kept = _spaced(parts)
    rows, left_out = _rows(kept)
    said = [*notes]
    if len(kept) < len(parts):
        said.append(f"{len(kept)} of {len(parts)} steps, evenly spaced: more would make the page too large.")
    if left_out:
        said.append(f"{left_out} more completions would make the page too large and are left out.")
    content = {
        "parts": [{"label": part.label, "note": part.note} for part in kept],
        "rows": rows,
        "first": len(kept) - 1,
    }
    script = (_HERE / "completions.js").read_text(encoding="utf-8")
    style = (_HERE / "completions.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    return "\n".join(
        [
            html_head(title, f"\n{STYLE}{style}", policy) + f"<h1>{escape(title)}</h1>",
            *(f"<p class='note'>{escape(note)}</p>" for note in said),
            _CONTROLS + f'<script type="application/json" id="data">{_embedded(content)}</script>',
            f"<script>{script}</script>\n</body>\n</html>\n",
        ]
    )


def run_page(run: Path, title: str) -> str:
    """Page of what a run directory keeps in rollouts/, step by step; empty where it keeps nothing.

    Raises:
        UnreadableError: a line of a file is damaged.
    """
    found = [
        *((step, "evaluation", "", file) for step, file in _files(run, "step")),
        *((step, "training", _TRAINING, file) for step, file in _files(run, "train")),
    ]
    parts = [
        Part(f"step {step}, {kind}", read_lines(file, json.loads, "delete the file"), note)
        for step, kind, note, file in sorted(found, key=lambda each: (each[0], each[1] == "evaluation"))
    ]
    about = "Completions that logging.samples and logging.rollouts keep, from rollouts/*.jsonl of the run directory."
    return completions_page(title, [about], parts) if any(part.completions for part in parts) else ""


def _files(run: Path, kind: str) -> Iterator[tuple[int, Path]]:
    for file in (run / "rollouts").glob(f"{kind}-*.jsonl"):
        number = file.stem.removeprefix(f"{kind}-")
        if number.isdecimal():
            yield int(number), file


def _spaced(parts: Sequence[Part]) -> list[Part]:
    """Parts with completions, evenly spaced from the last backwards, with about `MOST_ROWS` completions at most."""
    filled = [part for part in parts if part.completions]
    every = max(1, math.ceil(sum(len(part.completions) for part in filled) / MOST_ROWS))
    return filled[::-1][::every][::-1]


def _rows(parts: Sequence[Part]) -> tuple[list[dict[str, Any]], int]:
    """Completions as the page's script reads them, and how many are beyond its size."""
    rows: list[dict[str, Any]] = []
    room, left_out = MOST_BYTES, 0
    for number, part in enumerate(parts):
        for completion in part.completions:
            row = _row(number, completion)
            size = len(_embedded(row))
            if room < size or len(rows) >= MOST_ROWS:
                left_out += 1
                continue
            room -= size
            rows.append(row)
    return rows, left_out


def _row(part: int, completion: Mapping[str, Any]) -> dict[str, Any]:
    texts = completion.get("token_texts")
    row = {
        "part": part,
        **{name: _short(completion.get(name)) for name in ("id", "prompt", "completion", "answer")},
        "extracted": None if completion.get("extracted") is None else _short(completion["extracted"]),
        "error": None if completion.get("error") is None else _short(completion["error"]),
        **{name: completion.get(name) for name in ("correct", "strict", "truncated", "reward")},
    }
    beyond = len(str(completion.get("completion") or "")) - _MOST_LETTERS
    if texts is not None and _fits(texts):
        row["texts"] = texts
        for name in ("logprobs", "advantages"):
            if completion.get(f"token_{name}") is not None:
                row[name] = completion[f"token_{name}"]
    elif beyond > 0:
        row["cut"] = f"{beyond} more characters are left out"
    return row


def _fits(texts: Sequence[str]) -> bool:
    return len(texts) <= _MOST_TOKENS and sum(map(len, texts)) <= _MOST_LETTERS


def _short(text: object) -> str:
    whole = "" if text is None else str(text)
    return whole if len(whole) <= _MOST_LETTERS else whole[:_MOST_LETTERS] + "…"


def _embedded(value: Any) -> str:
    """JSON in ASCII that no HTML parser takes for markup, whatever its texts are."""
    text = json.dumps(finite(value), separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
