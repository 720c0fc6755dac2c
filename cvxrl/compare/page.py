"""One self-contained HTML page: nothing on it comes from anywhere else."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from cvxrl.compare.figures.canvas import to_svg
from cvxrl.compare.figures.gallery import Shown, all_figures
from cvxrl.compare.gate import Verdict
from cvxrl.compare.result import Comparison
from cvxrl.compare.table import to_html
from cvxrl.compare.tables import all_tables

# The policy forbids the browser to load anything; should a link slip in, it stays dead.
_HEAD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 60rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; }}
h1 {{ font-size: 1.6rem; margin: 0 0 .5rem; }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem; }}
pre {{ background: #f4f4f4; padding: .6rem .8rem; overflow-x: auto; font-size: .85rem; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .25rem .9rem .25rem 0; vertical-align: top; text-align: right; white-space: nowrap; }}
th {{ border-bottom: 1px solid #888; font-weight: 600; vertical-align: bottom; }}
th.left, td.left {{ text-align: left; }}
td.left:last-child {{ white-space: normal; min-width: 10rem; }}
img {{ width: 100%; height: auto; display: block; }}
figure {{ margin: 0; }}
figcaption, .note {{ color: #555; font-size: .85rem; }}
.warning {{ border-left: 4px solid #E69F00; padding-left: .7rem; margin: .4rem 0; }}
.problem {{ border-left: 4px solid #B00020; padding-left: .7rem; margin: .4rem 0; white-space: pre-line; }}
</style>
</head>
<body>
"""


def make_page(c: Comparison, verdicts: Sequence[Verdict], command: str) -> str:
    """The page as text."""
    methods = list(dict.fromkeys(s.method for s in c.summaries))
    title = "Comparison of " + ", ".join(methods)
    parts = [_HEAD.format(title=escape(title)), f"<h1>{escape(title)}</h1>", f"<pre>{escape(command)}</pre>"]
    parts += [f"<p class='problem'>{escape(str(p))}</p>" for p in c.problems]
    parts += [f"<p class='warning'>{escape(w)}</p>" for w in c.warnings]
    parts += [f"<p class='{'note' if v.met else 'problem'}'>require: {escape(str(v))}</p>" for v in verdicts]
    tables = {table.title: to_html(table) for table in all_tables(c)}
    figures = [_figure(shown) for shown in all_figures(c)]
    # The answer first: scores and verdicts, then the pictures, then the rest of the tables.
    ordered = list(tables.values())
    parts += [*ordered[:2], *figures, *ordered[2:], "</body>\n</html>\n"]
    return "\n".join(parts)


def _figure(shown: Shown) -> str:
    data = base64.b64encode(to_svg(shown.figure)).decode()
    title, text = escape(shown.title), escape(shown.caption)
    return (
        f"<section>\n<h2>{title}</h2>\n<figure>\n<img alt='{title}: {text}' "
        f"src='data:image/svg+xml;base64,{data}'>\n<figcaption>{text}</figcaption>\n</figure>\n</section>"
    )
