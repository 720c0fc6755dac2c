"""The rooms of the package and the imports between them as a diagram, and the files that one GRPO step runs through.

`python docs/architecture.py` writes docs/figures/architecture.png; with `--walk` it prints the files of a step in the
order in which they come up.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "cvxrl"
FIGURE = ROOT / "docs" / "figures" / "architecture.png"
# Colours of Okabe and Ito, which the colour-blind can tell apart.
COLOURS = ("#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

WIDTH = 12.0
HALF = 0.32  # of a box's height; floors are 1 apart

Arrow = tuple[str, str]
Node = tuple[str, str]


def floors() -> dict[str, int]:
    """Floor of each room, as tests/test_structure.py has them."""
    tree = ast.parse((ROOT / "tests" / "test_structure.py").read_text(encoding="utf-8"))
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name("FLOOR")], value=value) | ast.AnnAssign(ast.Name("FLOOR"), value=value):
                assert value is not None
                return dict(ast.literal_eval(value))
    raise ValueError("tests/test_structure.py has no FLOOR")


def arrows() -> set[Arrow]:
    """(importing room, imported room) of every import within the package."""
    found = set()
    for module in PACKAGE.rglob("*.py"):
        here = module.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cvxrl."):
                found.add((here, node.module.split(".")[1]))
    return {(a, b) for a, b in found if a != b and a != "__init__"}


def direct(every: set[Arrow]) -> set[Arrow]:
    """The arrows that no longer way down stands for: of a -> b -> c and a -> c the last is left out."""
    below: dict[str, set[str]] = {}

    def reach(room: str) -> set[str]:
        if room not in below:
            targets = {b for a, b in every if a == room}
            below[room] = targets.union(*map(reach, targets))
        return below[room]

    return {(a, c) for a, c in every if not any(c in reach(b) for x, b in every if x == a and b != c)}


def fingerprint() -> str:
    """Digest of what the diagram shows; the figure carries it, so that a test can see that it is of this code."""
    return hashlib.sha256(repr((sorted(floors().items()), sorted(arrows()))).encode()).hexdigest()[:16]


def walk() -> dict[str, list[str]]:
    """Files of the package and their functions that the second step of a small `math_grpo` runs, as they come up."""
    from cvxrl.engine.trainer import Trainer
    from cvxrl.recipe.load import load_recipe

    small = ("rollout.prompts=4", "rollout.samples=4", "rollout.max_new_tokens=24", "train.steps=2", "eval.every=0")
    trainer = Trainer.build(load_recipe("math_grpo", list(small)))
    trainer._step(1)
    found: dict[str, list[str]] = {}

    def look(frame: Any, event: str, _: object) -> None:
        if event == "call" and (path := frame.f_code.co_filename).startswith(str(PACKAGE)):
            functions = found.setdefault(Path(path).relative_to(PACKAGE).as_posix(), [])
            if frame.f_code.co_qualname not in functions:
                functions.append(frame.f_code.co_qualname)

    sys.setprofile(look)
    try:
        trainer._step(2)
    finally:
        sys.setprofile(None)
    return found


def order(ranks: list[list[Node]], links: list[tuple[Node, Node]]) -> None:
    """Sort every row by the mean place of its neighbours in the rows beside it, down and up, until few links cross."""
    above: dict[Node, list[Node]] = {}
    below: dict[Node, list[Node]] = {}
    for a, b in links:
        below.setdefault(a, []).append(b)
        above.setdefault(b, []).append(a)
    best, fewest = [list(row) for row in ranks], crossings(ranks, links)
    for sweep in range(24):
        beside = above if sweep % 2 == 0 else below
        for row in ranks if sweep % 2 == 0 else reversed(ranks):
            at = places(ranks)
            row.sort(key=lambda n: (sum(at[m] for m in beside.get(n, [n])) / len(beside.get(n, [n])), str(n)))
        if crossings(ranks, links) < fewest:
            best, fewest = [list(row) for row in ranks], crossings(ranks, links)
    for row, chosen in zip(ranks, best, strict=True):
        row[:] = chosen


def places(ranks: list[list[Node]]) -> dict[Node, float]:
    """Place of every node across, from 0 to 1; an arrow that passes through takes less of the width than a room."""
    at = {}
    for row in ranks:
        widths = [0.3 if towards else 1.0 for _, towards in row]
        for i, node in enumerate(row):
            at[node] = (sum(widths[:i]) + widths[i] / 2) / sum(widths)
    return at


def crossings(ranks: list[list[Node]], links: list[tuple[Node, Node]]) -> int:
    """Pairs of links between the same rows that cross."""
    at, row_of = places(ranks), {node: r for r, row in enumerate(ranks) for node in row}
    spans = [(row_of[a], at[a], at[b]) for a, b in links]
    return sum(r == s and (a - c) * (b - d) < 0 for i, (r, a, b) in enumerate(spans) for s, c, d in spans[:i])


def layout() -> tuple[list[list[Node]], list[list[Node]]]:
    """Rows of nodes, topmost first, and the nodes that each direct arrow passes through.

    A node is (room, ""), or (a, b) for the place at which the arrow from a to b passes through a floor between them.
    """
    floor = floors()
    levels = sorted(set(floor.values()), reverse=True)
    ranks: list[list[Node]] = [[(room, "") for room in floor if floor[room] == level] for level in levels]
    paths = []
    for a, b in sorted(direct(arrows())):
        between = range(levels.index(floor[a]) + 1, levels.index(floor[b]))
        for r in between:
            ranks[r].append((a, f"{b}@{r}"))
        paths.append([(a, ""), *((a, f"{b}@{r}") for r in between), (b, "")])
    order(ranks, [link for path in paths for link in pairwise(path)])
    return ranks, paths


def draw() -> None:
    """Write the diagram."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
    from matplotlib.path import Path as Curve

    every, (ranks, paths) = arrows(), layout()
    figure = Figure(figsize=(WIDTH, 1.08 * len(ranks)), layout="constrained")
    axis = figure.subplots()
    axis.set_axis_off()
    axis.set_xlim(0, WIDTH)
    axis.set_ylim(-0.5, len(ranks) - 0.3)
    at = {
        n: (WIDTH * x, len(ranks) - 1 - r) for r, row in enumerate(ranks) for n, x in places(ranks).items() if n in row
    }
    rooms = [n[0] for row in ranks for n in row if not n[1]]
    for path in paths:
        # Between two floors an arrow bends; past the rooms of a floor it goes straight down.
        ends = [(x, y + side) for (x, y) in (at[n] for n in path) for side in (HALF, -HALF)][1:-1]
        vertices, codes = [ends[0]], [Curve.MOVETO]
        for (x, y), (u, v) in zip(ends[::2], ends[1::2], strict=True):
            if (x, y) != vertices[-1]:
                vertices, codes = [*vertices, (x, y)], [*codes, Curve.LINETO]
            vertices += [(x, (y + v) / 2), (u, (y + v) / 2), (u, v)]
            codes += [Curve.CURVE4] * 3
        colour = COLOURS[rooms.index(path[0][0]) % len(COLOURS)]
        arrow = FancyArrowPatch(path=Curve(vertices, codes), arrowstyle="-|>", mutation_scale=11, color=colour, lw=1.4)
        axis.add_patch(arrow)
    for room in rooms:
        x, y = at[room, ""]
        rest = sorted({b for a, b in every if a == room} - {path[-1][0] for path in paths if path[0][0] == room})
        colour = COLOURS[rooms.index(room) % len(COLOURS)]
        box = FancyBboxPatch((x - 1.02, y - HALF), 2.04, 2 * HALF, "round,pad=0,rounding_size=0.08", fc="w", ec=colour)
        axis.add_patch(box)
        axis.text(x, y + (0.16 if rest else 0), room, ha="center", va="center", weight="bold", size=11)
        axis.text(x, y + 0.03, fill("+ " + ", ".join(rest), 38) if rest else "", ha="center", va="top", size=7.2)
    figure.savefig(FIGURE, dpi=140, metadata={"Software": None, "Description": fingerprint()})


if __name__ == "__main__":
    if "--walk" in sys.argv[1:]:
        steps = walk()
        for file, functions in steps.items():
            print(f"{file:32} {len(functions):3}  {', '.join(functions)}")
        print(f"{len(steps)} files, {sum(map(len, steps.values()))} functions")
    else:
        draw()
        print(FIGURE)
