"""TensorBoard's event files: the scalars of a folder, which is one run."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cvxrl.comparison.foreign.json_lines import seed_of
from cvxrl.comparison.foreign.log import Log, Row, refuse
from cvxrl.comparison.foreign.names import PRIME_RL, TINKER, TRL, VERL
from cvxrl.imports import require_installed

_FILES = "*.tfevents.*"
# A record is its length, the check sum of that, its bytes, and theirs.
_HEAD, _TAIL = struct.Struct("<QI"), 4
_ARGUMENTS = "args/text_summary"  # what transformers' trainers write: all of their arguments, as JSON


def owns(path: Path) -> bool:
    """Whether it is a folder with event files in it, or an event file."""
    return any(path.glob(_FILES)) if path.is_dir() else ".tfevents." in path.name and path.is_file()


def read(path: Path) -> Log:
    """Read the scalars of all files of a folder, in the order in which they were begun.

    Raises:
        UserError: tensorboard is not installed, or a file is damaged or empty; one problem per file.
    """
    require_installed("tensorboard", "tensorboard", "tensorboard", str(path))
    folder = path if path.is_dir() else path.parent
    rows: list[Row] = []
    config: dict[str, Any] = {}
    for file in sorted(path.glob(_FILES), key=_begun) if path.is_dir() else [path]:
        for step, tag, value in _values(file):
            if tag == _ARGUMENTS:
                config = config or _arguments(value)
            else:
                rows.append((float(step), {tag: value} if isinstance(value, float) else {}))
    return Log(
        path, folder.absolute().name, "TensorBoard", rows, (*TRL, *VERL, *PRIME_RL, *TINKER), seed=seed_of(config)
    )


def _begun(file: Path) -> tuple[int, str]:
    found = re.search(r"\.tfevents\.(\d+)", file.name)
    return int(found[1]) if found else 0, file.name


def _values(file: Path) -> Iterator[tuple[int, str, Any]]:
    """Step, tag and number, or text, of every summary."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.util.tensor_util import make_ndarray

    for record in _records(file):
        event = Event.FromString(record)
        for value in event.summary.value:
            if value.HasField("simple_value"):
                yield event.step, value.tag, float(value.simple_value)
            elif value.HasField("tensor"):
                array = make_ndarray(value.tensor)
                if array.size == 1:
                    item = array.item()
                    yield event.step, value.tag, float(item) if array.dtype.kind in "fiu" else item


def _records(file: Path) -> Iterator[bytes]:
    """The records of a file; a torn last one is left out, as of a program that was killed.

    TensorBoard's own reader ends in silence at a damaged record as it does at a torn one.
    """
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    try:
        content = file.read_bytes()
    except OSError as error:
        refuse(file, f"cannot be read: {error.strerror}")
    if not content:
        refuse(file, "is empty")
    at = 0
    while at + _HEAD.size <= len(content):
        length, check = _HEAD.unpack_from(content, at)
        if masked_crc32c(content[at : at + 8]) != check:
            refuse(file, f"is damaged at byte {at}")
        start = at + _HEAD.size
        at = start + length + _TAIL
        if at > len(content):
            return
        body = content[start : start + length]
        if masked_crc32c(body) != int.from_bytes(content[start + length : at], "little"):
            refuse(file, f"is damaged at byte {start}")
        yield body


def _arguments(value: Any) -> dict[str, Any]:
    try:
        found = json.loads(value)
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
