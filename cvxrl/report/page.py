"""The frame of a self-contained HTML page, and its figures."""

from __future__ import annotations

import base64
from html import escape

from matplotlib.figure import Figure

from cvxrl.report.figure import to_svg

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


def head(title: str) -> str:
    """Everything above the page's own content."""
    return _HEAD.format(title=escape(title))


def figure_section(title: str, figure: Figure, caption: str) -> str:
    """A section with a heading, the figure as a picture inside the page, and its caption."""
    data = base64.b64encode(to_svg(figure)).decode()
    name, text = escape(title), escape(caption)
    return (
        f"<section>\n<h2>{name}</h2>\n<figure>\n<img alt='{name}: {text}' "
        f"src='data:image/svg+xml;base64,{data}'>\n<figcaption>{text}</figcaption>\n</figure>\n</section>"
    )
