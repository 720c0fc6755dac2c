"""How often the math grader says what math-verify's own test cases expect, and where it does not.

The cases are read, without running them, from the `tests` folder of a source distribution or a checkout of math-verify:

    pip download math-verify==0.9.0 --no-binary :all: --no-deps && tar xzf math_verify-0.9.0.tar.gz
    python benchmarks/grader_agreement.py math_verify-0.9.0

Without a path the tests are looked for beside the installed package, which its wheel leaves out. A case is a row of a
`parametrize` whose names are `gold`, `pred` and `expected` (or `result`). It is graded twice: with the whole of `pred`
as the reply (`extract: none`), and, where `pred` is a single formula in dollar signs, with that formula in a box
(`extract: boxed`), as a policy would write it. Rows that ask math-verify for another setting than its default
(strictness, precision) are counted apart. docs/eval.md explains the disagreements.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from cvxrl.recipe.task import TaskSpec
from cvxrl.tasks import Example, load_grader

# Settings of math-verify that a row may name, with the value under which the row concerns this grader.
DEFAULTS = {"strict": True, "precision": 6, "allow_set_relation_comp": False}
VERDICTS = ("expected", "result")


@dataclass(frozen=True)
class Case:
    """A right answer, a reply, and whether math-verify's authors call the reply right; `place` is file and line."""

    place: str
    gold: str
    reply: str
    right: bool


def published_cases(folder: Path) -> tuple[list[Case], int]:
    """The cases of every test file below `folder`, and how many rows compute their texts or ask for another setting."""
    cases: list[Case] = []
    apart = 0
    for file in sorted(folder.rglob("test_*.py")):
        for names, row in _rows(ast.parse(file.read_text(encoding="utf-8"))):
            values = {name: _literal(node) for name, node in zip(names, row.elts, strict=True)}
            verdict = next((values[name] for name in VERDICTS if name in values), None)
            if verdict is None or not {"gold", "pred"} <= values.keys():
                continue
            texts = isinstance(values["gold"], str) and isinstance(values["pred"], str)
            if not texts or any(values.get(name, default) != default for name, default in DEFAULTS.items()):
                apart += 1
                continue
            cases.append(Case(f"{file.name}:{row.lineno}", values["gold"], values["pred"], bool(verdict)))
    return cases, apart


def _rows(tree: ast.Module) -> Iterator[tuple[list[str], ast.Tuple]]:
    """Names and row of every `parametrize(names, [(...), ...])`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "parametrize":
            names = [name.strip() for name in _literal(node.args[0]).split(",")]
            for row in getattr(node.args[1], "elts", []):
                if isinstance(row, ast.Tuple) and len(row.elts) == len(names):
                    yield names, row


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def single_formula(reply: str) -> str | None:
    """What stands between the dollar signs, if the reply is one formula and nothing else."""
    inner = reply.strip().removeprefix("$").removesuffix("$")
    return inner if reply.strip() == f"${inner}$" and "$" not in inner and "boxed" not in inner else None


def graded(cases: list[Case], extract: str) -> list[dict[str, Any]]:
    """Verdict of the recipe's math grader on every case, in the form of one line a case."""
    spec = {"source": {"kind": "arithmetic"}, "reward": {"kind": "math-verify"}, "extract": {"kind": extract}}
    grader = load_grader(TypeAdapter(TaskSpec).validate_python(spec))
    try:
        examples = [Example(case.place, "", case.gold) for case in cases]
        grades = grader.grade([case.reply for case in cases], examples)
    finally:
        grader.close()
    return [
        vars(case) | {"extract": extract, "ours": grade.correct, "error": grade.error}
        for case, grade in zip(cases, grades, strict=True)
    ]


def main() -> None:
    """Count, and list what disagrees."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("path", nargs="?", type=Path, help="source distribution or checkout of math-verify, unpacked")
    parser.add_argument("--json", action="store_true", help="every verdict as one JSON document")
    options = parser.parse_args()
    spec = find_spec("math_verify")
    folder = options.path or (Path(spec.origin).parent if spec and spec.origin else Path("math_verify"))
    cases, apart = published_cases(folder)
    if not cases:
        sys.exit(f"no test cases below {folder}: give the path of math-verify's source distribution or checkout")
    formulas = [(case, single_formula(case.reply)) for case in cases]
    boxed = [Case(c.place, c.gold, f"\\boxed{{{inner}}}", c.right) for c, inner in formulas if inner is not None]
    verdicts = [graded(cases, "none"), graded(boxed, "boxed")]
    if options.json:
        print(json.dumps(verdicts, indent=1))
        return
    for what, lines in zip(("whole reply", "boxed answer"), verdicts, strict=True):
        wrong = [line for line in lines if line["ours"] != line["right"]]
        print(f"{what}: {len(lines) - len(wrong)} of {len(lines)} cases agree")
        for line in wrong:
            said = f"ours {'right' if line['ours'] else 'wrong'}" + (f" ({line['error']})" if line["error"] else "")
            print(f"  {line['place']}: gold {line['gold']!r}, reply {line['reply']!r}: {said}")
    print(f"{apart} rows ask for another setting of math-verify or compute their texts, and were left out")


if __name__ == "__main__":
    main()
