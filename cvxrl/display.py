"""Show a run: a live panel on a terminal, plain lines in a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from cvxrl.runs.sink import Row, Sink

_WIDTH = 80
_PLAIN_LINES = 50  # a log of a long run stays readable
_SPARKS = "▁▂▃▄▅▆▇█"
_LIVE_ROWS = (
    ("training reward", "reward/mean", ".3f"),
    ("held-out accuracy", "eval/accuracy", ".3f"),
    ("entropy (nats)", "policy/entropy", ".3f"),
    ("KL per step (nats)", "policy/kl", ".2e"),
    ("gradient norm", "grad/norm", ".3g"),
    ("loss", "loss", ".3g"),
    ("response length", "response/length", ".1f"),
    ("tokens/s", "time/tokens_per_s", ",.0f"),
)


def make_sink(stream: TextIO) -> Sink:
    """Live display if ``stream`` is a terminal, plain lines otherwise."""
    return LiveSink(stream) if stream.isatty() else PlainSink(stream)


class PlainSink:
    """One line per step, thinned out on long runs; no colour, no control characters."""

    def __init__(self, stream: TextIO) -> None:
        """Write to ``stream``."""
        self._console = Console(file=stream, width=_WIDTH, no_color=True, highlight=False, soft_wrap=True)
        self._stream = stream
        self._every = 1
        self._steps = 0

    def start(self, title: str, steps: int, done: int) -> None:
        """Announce the run."""
        self._steps, self._every = steps, max(1, -(-steps // _PLAIN_LINES))
        after = f", {done} done before" if done else ""
        self._print(f"{title}: {steps} steps{after}")

    def step(self, record: Mapping[str, float]) -> None:
        """Print the first, the last, every evaluated and every n-th step."""
        step = int(record["step"])
        if step in (1, self._steps) or step % self._every == 0 or "eval/accuracy" in record:
            self._print(" ".join([f"{step:>5}/{self._steps}", *_short(record)]))

    def event(self, text: str) -> None:
        """Print one line."""
        self._print(text)

    def finish(self, status: str, rows: Sequence[Row]) -> None:
        """Print the summary."""
        self._console.print(summary_table(status, rows))

    def _print(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class LiveSink:
    """Progress bar with time left above a table that changes in place."""

    def __init__(self, stream: TextIO) -> None:
        """Draw on ``stream``, a terminal."""
        self._console = Console(file=stream)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._live: Live | None = None
        self._history: dict[str, list[float]] = {}

    def start(self, title: str, steps: int, done: int) -> None:
        """Begin drawing."""
        self._task = self._progress.add_task(title, total=steps, completed=done)
        self._live = Live(self._render(), console=self._console, refresh_per_second=4)
        self._live.start()

    def step(self, record: Mapping[str, float]) -> None:
        """Update bar and table."""
        for _, key, _ in _LIVE_ROWS:
            if record.get(key) is not None:
                self._history.setdefault(key, []).append(record[key])
        self._progress.update(self._task, completed=int(record["step"]))
        if self._live is not None:
            self._live.update(self._render())

    def event(self, text: str) -> None:
        """Print one line above the panel."""
        self._console.print(text)

    def finish(self, status: str, rows: Sequence[Row]) -> None:
        """Stop drawing and print the summary."""
        if self._live is not None:
            self._live.stop()
        self._console.print(summary_table(status, rows))

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2), show_header=False)
        for name, key, form in _LIVE_ROWS:
            values = self._history.get(key)
            if values:
                table.add_row(name, format(values[-1], form), sparkline(values))
        return Group(self._progress, table)


def sparkline(values: Sequence[float], width: int = 32) -> str:
    """Newest ``width`` values as bars between their smallest and largest; non-finite ones as `?`."""
    shown = values[-width:]
    finite = [v for v in shown if v - v == 0]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(_SPARKS[int((v - low) * scale)] if v - v == 0 else "?" for v in shown)


def summary_table(status: str, rows: Sequence[Row]) -> Table:
    """Table of the numbers at the start and at the end of a run."""
    table = Table(title=f"run {status}", title_justify="left", width=_WIDTH)
    table.add_column("")
    table.add_column("start", justify="right")
    table.add_column("end", justify="right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _short(record: Mapping[str, float]) -> list[str]:
    """Most telling numbers of a step, each with a short name."""
    parts = []
    for label, key, form in (
        ("reward", "reward/mean", ".3f"),
        ("loss", "loss", ".3g"),
        ("entropy", "policy/entropy", ".3f"),
        ("grad", "grad/norm", ".2g"),
        ("tok/s", "time/tokens_per_s", ".0f"),
        ("accuracy", "eval/accuracy", ".3f"),
        ("±", "eval/stderr", ".3f"),
    ):
        if record.get(key) is not None:
            parts.append(f"{label} {record[key]:{form}}")
    return parts
