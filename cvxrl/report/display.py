"""Show a run: a live panel on a terminal, plain lines in a pipe."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from cvxrl.report.document import WIDTH
from cvxrl.report.format import NO_ERROR, fixed, scientific, short, whole, with_error
from cvxrl.report.stream import write_out
from cvxrl.runs.sink import Row

_END_WIDTH = 22  # a wider end value, such as a path, goes below the table where it can be copied whole
_PLAIN_LINES = 50  # a log of a long run stays readable
_SPARKS = "▁▂▃▄▅▆▇█"
# (name, metric, how its newest value is written)
_LIVE_ROWS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("training reward", "reward/mean", fixed),
    ("held-out accuracy", "eval/accuracy", fixed),
    ("entropy (nats)", "policy/entropy", fixed),
    ("KL per step (nats)", "policy/kl", partial(scientific, decimals=2)),
    ("gradient norm", "grad/norm", short),
    ("loss", "loss", short),
    ("response length", "response/length", partial(fixed, decimals=1)),
    ("grader errors", "reward/grader_errors", fixed),
    ("grader errors, held-out", "eval/grader_errors", fixed),
    ("tokens/s", "time/tokens_per_s", whole),
)
# Shares of replies that a grader fails on: nothing to say where there are none.
_ONLY_IF_ANY = ("reward/grader_errors", "eval/grader_errors")
_PLAIN_PARTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("reward", "reward/mean", fixed),
    ("grader errors", "reward/grader_errors", fixed),
    ("loss", "loss", short),
    ("entropy", "policy/entropy", fixed),
    ("kl", "policy/kl", scientific),
    ("grad", "grad/norm", partial(short, digits=2)),
    ("tok/s", "time/tokens_per_s", partial(fixed, decimals=0)),
)


def make_sink(stream: TextIO) -> LiveSink | PlainSink:
    """Live display if ``stream`` is a terminal, plain lines otherwise.

    Use it as a context manager, so that a run that raises leaves the terminal as it found it.
    """
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="replace")  # a terminal without Unicode must not end a training run
    return LiveSink(stream) if stream.isatty() else PlainSink(stream)


class PlainSink:
    """One line per step, thinned out on long runs; no colour, no control characters."""

    def __init__(self, stream: TextIO) -> None:
        """Write to ``stream``."""
        self._console = Console(
            file=stream, width=WIDTH, no_color=True, force_terminal=False, highlight=False, soft_wrap=True
        )
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
        with self._console.capture() as capture:
            _print_summary(self._console, status, rows)
        self._print(capture.get().rstrip("\n"))

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to undo."""

    def _print(self, text: str) -> None:
        write_out(text + "\n", self._stream)


class LiveSink:
    """Progress bar with time left above a table that changes in place."""

    def __init__(self, stream: TextIO) -> None:
        """Draw on ``stream``, a terminal."""
        self._console = Console(file=stream, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
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
        self._console.print(text, markup=False)

    def finish(self, status: str, rows: Sequence[Row]) -> None:
        """Stop drawing and print the summary."""
        self._stop()
        _print_summary(self._console, status, rows)

    def __enter__(self) -> Self:
        """Drawing begins with `start`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop drawing, so that a traceback is readable and the cursor comes back."""
        self._stop()

    def _stop(self) -> None:
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()
            self._live = None

    def _render(self) -> Group:
        table = Table(box=None, padding=(0, 2), show_header=False)
        for name, key, written in _LIVE_ROWS:
            values = self._history.get(key)
            if values and (key not in _ONLY_IF_ANY or any(values)):
                now = written(values[-1])
                if key == "eval/accuracy":
                    now += f" (best {written(max(values))})"
                table.add_row(name, now, sparkline(values))
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
    table = Table(title=Text(f"run {status}"), title_justify="left", width=WIDTH)
    table.add_column("", ratio=1)
    table.add_column("start", justify="right", no_wrap=True)
    table.add_column("end", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _print_summary(console: Console, status: str, rows: Sequence[Row]) -> None:
    """Numbers as a table; what is too wide for it, such as a path, on lines of its own that no terminal breaks."""
    wide = [row for row in rows if len(row[2]) > _END_WIDTH]
    console.print(summary_table(status, [row for row in rows if row not in wide]))
    for name, start, end in wide:
        console.print(Text(f"{name}: {start + ' -> ' if start else ''}{end}"), soft_wrap=True)


def _short(record: Mapping[str, float]) -> list[str]:
    """Most telling numbers of a step, each with a short name."""
    parts = [
        f"{name} {written(record[key])}"
        for name, key, written in _PLAIN_PARTS
        if record.get(key) is not None and (key not in _ONLY_IF_ANY or record[key])
    ]
    if record.get("eval/accuracy") is not None:
        if record.get("eval/grader_errors"):
            parts.append(f"held-out grader errors {fixed(record['eval/grader_errors'])}")
        parts.append(f"accuracy {with_error(record['eval/accuracy'], record.get('eval/stderr'), NO_ERROR)}")
    return parts
