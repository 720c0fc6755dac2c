"""docs/models.md, from a run over all families: `python -m tests.families.page docs/models.md`, some minutes."""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from tiny_models import CannotBuildError, build_family, families

from tests.families.verdicts import QUESTIONS, REFUSED, SLOW, WORKS, Answer, WrongError, answers

HEAD = Path(__file__).with_name("head.md")
Answers = dict[str, Answer]


def ask(kinds: list[str]) -> tuple[dict[str, Answers], dict[str, str], dict[str, str]]:
    """Answers of the families, reasons of those that cannot be built tiny, and wrong numbers, which must be none."""
    found: dict[str, Answers] = {}
    unbuilt: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for kind in kinds:
        settings = settings_of(kind)
        try:
            build_family(kind, **settings)
        except CannotBuildError as error:
            unbuilt[kind] = str(error)
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                found[kind] = answers(kind, Path(folder), **settings)
            except WrongError as error:
                wrong[kind] = str(error)
            except Exception as error:  # all that is not a refusal is a fault
                wrong[kind] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        said = wrong.get(kind) or ", ".join(f"{q}: {a.kind}" for q, a in found[kind].items())
        print(f"{kind}: {said}", file=sys.stderr, flush=True)
    return found, unbuilt, wrong


def settings_of(kind: str) -> dict[str, Any]:
    """Encoders that can decode are asked to."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return {"is_decoder": True} if hasattr(CONFIG_MAPPING[kind], "is_decoder") else {}


def page(found: dict[str, Answers], unbuilt: dict[str, str]) -> str:
    """The page: its head, counts, the table, messages."""
    lines = [HEAD.read_text(encoding="utf-8").rstrip(), "", *counts(found), ""]
    messages: dict[str, int] = {}
    lines += [_row(["family", *QUESTIONS]), _row(["---"] * (1 + len(QUESTIONS)))]
    for kind, said in found.items():
        lines.append(_row([f"`{kind}`", *(_cell(said[q], messages) for q in QUESTIONS)]))
    lines += ["", "Messages of the refusals:", ""]
    lines += [f"{number}. {message}" for message, number in messages.items()]
    lines += ["", f"## Not built tiny: {len(unbuilt)}", "", _row(["family", "reason"]), _row(["---"] * 2)]
    lines += [_row([f"`{kind}`", reason.replace("|", "/")]) for kind, reason in unbuilt.items()]
    return "\n".join(lines) + "\n"


def counts(found: dict[str, Answers]) -> list[str]:
    """Families per outcome, a row per question."""
    kinds = (WORKS, SLOW, REFUSED)
    rows = [_row([f"of {len(found)} families", *kinds]), _row(["---", *["---:"] * len(kinds)])]
    for question in QUESTIONS:
        tally = Counter(said[question].kind for said in found.values())
        rows.append(_row([question, *(str(tally[kind]) for kind in kinds)]))
    return rows


def _cell(answer: Answer, messages: dict[str, int]) -> str:
    if answer.kind != REFUSED:
        return answer.kind
    message = answer.message.replace("|", "/")
    return f"{REFUSED} ({messages.setdefault(message, len(messages) + 1)})"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write(path: Path) -> None:
    """Ask all families and write the page.

    Raises:
        WrongError: a number of some family is wrong; nothing is written.
    """
    found, unbuilt, wrong = ask(sorted(families()))
    if wrong:
        raise WrongError(wrong)
    path.write_text(page(found, unbuilt), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
