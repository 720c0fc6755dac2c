"""Event files for TensorBoard: scalars, completions and the recipe as text, learning curves, and hyperparameters."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from cvxrl.recipe.digest import leaves
from cvxrl.recipe.load import dump
from cvxrl.recipe.monitoring import TensorboardSink
from cvxrl.recipe.schema import Recipe
from cvxrl.runs.dashboard import SAMPLES, Dashboard, Samples, Values, to_markdown

_METRICS = ("eval/accuracy", "reward/mean")  # columns of the tab HPARAMS
_PNG_SIZE = slice(16, 24)  # width and height in the header


class TensorboardRun(Dashboard):
    """A directory with one event file, which every session writes anew from what it keeps of the former one.

    TensorBoard's own way, a mark from which on older files do not count (`purge_step`), is only half followed: its
    accumulator drops scalars but keeps texts, and other readers know nothing of it. Every step is handed to the
    operating system at once, so that a killed process leaves whole events.
    """

    kind = "tensorboard"

    def __init__(self, spec: TensorboardSink, recipe: Recipe, run_dir: Path) -> None:
        """Nothing is written before the start."""
        super().__init__(recipe, run_dir)
        self._text = dump(recipe)
        self._folder = run_dir / "tensorboard"
        if spec.directory is not None:
            self._folder = Path(spec.directory).expanduser() / recipe.name / f"seed-{recipe.seed}"

    def open(self, kept: int) -> set[int]:
        """A new file with what older ones hold up to ``kept``; those go then."""
        self._folder.mkdir(parents=True, exist_ok=True)
        older = sorted(self._folder.glob("events.out.tfevents.*"))
        self._file = EventFile(self._folder)
        events = [event for event in read_events(older) if event.HasField("summary") and event.step <= kept]
        held = {event.step for event in events if any(v.HasField("simple_value") for v in event.summary.value)}
        for event in events if held else []:
            if event.step in held or event.step == 0:  # where the recipe is; completions without numbers come again
                self._file.copy(event)
        if not held:
            from torch.utils.tensorboard.summary import hparams, text

            chosen = {key: v for key, v in leaves(self.config) if isinstance(v, str | int | float)}
            experiment, begin, _ = hparams(chosen, dict.fromkeys(_METRICS, 0.0))
            for summary in (experiment, begin, text("recipe", f"```yaml\n{self._text}```")):
                self._file.add(summary, 0)
        self._file.flush()
        for file in older:
            file.unlink()
        self.notes.append(f"look with: tensorboard --logdir {self._folder}")
        return held

    def log(self, step: int, values: Values, rows: Samples | None) -> None:
        """One event for the completions, and then one for all values, by which the step is there."""
        from torch.utils.tensorboard.summary import text

        if rows is not None:
            self._file.add(text(SAMPLES, to_markdown(rows)), step)
        self._file.add_values(values, step)
        self._file.flush()

    def image(self, name: str, file: Path) -> None:
        """As it is."""
        self._file.add_png(name, file.read_bytes(), self.last)

    def close(self, status: str, result: Mapping[str, Any]) -> None:
        """The final numbers as text."""
        from torch.utils.tensorboard.summary import hparams, text

        rows = [{"": key, "end": value} for key, value in result.items()]
        self._file.add(text("summary", to_markdown(rows)), self.last)
        *_, end = hparams({}, {})
        self._file.add(end, 0)
        self._file.close()


class EventFile:
    """An event file that is written where it is called: a full disk is an error here, not on another thread."""

    _number = count()

    def __init__(self, folder: Path) -> None:
        """Make a file of a name that TensorBoard looks for, which sorts behind those of earlier sessions."""
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}.{next(self._number)}"
        self._stream = (folder / name).open("wb")
        self._records = RecordWriter(self._stream)
        self._event = Event
        self._write(file_version="brain.Event:2")
        # A TensorBoard that is open has read the older file; what it read counts no longer.
        self._write(step=0, session_log=SessionLog(status=SessionLog.START))

    def copy(self, event: Any) -> None:
        """Write an event of another file."""
        self._records.write(event.SerializeToString())

    def add(self, summary: Any, step: int) -> None:
        """Write a `Summary`."""
        self._write(step=step, summary=summary)

    def add_values(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        self.add(Summary(value=[Summary.Value(tag=key, simple_value=value) for key, value in values.items()]), step)

    def add_png(self, tag: str, content: bytes, step: int) -> None:
        """Write a picture."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        width, height = struct.unpack(">II", content[_PNG_SIZE])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=content)
        self.add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def flush(self) -> None:
        """Hand it to the operating system."""
        self._stream.flush()

    def close(self) -> None:
        """End the file."""
        self._stream.close()

    def _write(self, **event: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **event).SerializeToString())


def read_events(files: Iterable[Path]) -> Iterator[Any]:
    """Whole events of several files; a torn last one is left out."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event

    for file in files:
        for content in RawEventFileLoader(str(file)).Load():
            yield Event.FromString(content)
