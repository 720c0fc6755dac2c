"""What dashboards hold, read back from their own files by their own libraries: of every row its step and its values."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Row = tuple[int, dict[str, Any]]


def read_tensorboard(run_dir: Path) -> list[Row]:
    """Scalars by step as the event accumulator gives them; texts and pictures under their tags."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"tensors": 0, "scalars": 0, "images": 0})
    found.Reload()
    rows: list[Row] = []
    for tag in found.Tags()["scalars"]:
        rows += ((event.step, {tag: event.value}) for event in found.Scalars(tag))
    for tag in found.Tags()["tensors"]:
        rows += ((e.step, {tag: [b.decode() for b in e.tensor_proto.string_val]}) for e in found.Tensors(tag))
    for tag in found.Tags()["images"]:
        rows += ((event.step, {tag: event.encoded_image_string}) for event in found.Images(tag))
    return rows


def read_trackio(run_dir: Path, project: str = "cvxrl") -> list[Row]:
    """Rows of the run in the table `metrics`."""
    from trackio.sqlite_storage import SQLiteStorage

    own = json.loads((run_dir / "dashboards" / "trackio.json").read_text())["id"]
    logs = SQLiteStorage.get_logs(project, None, run_id=own)
    return [(log["step"], {k: v for k, v in log.items() if k not in ("step", "timestamp")}) for log in logs]


def trackio_config(run_dir: Path, project: str = "cvxrl") -> dict[str, Any]:
    """The run's configuration."""
    from trackio.sqlite_storage import SQLiteStorage

    own = json.loads((run_dir / "dashboards" / "trackio.json").read_text())["id"]
    return SQLiteStorage.get_run_config(project, None, run_id=own) or {}


def read_wandb(run_dir: Path) -> list[Row]:
    """History rows of all offline directories of the run together, once W&B's own process has closed the last."""
    rows: list[Row] = []
    ended = time.monotonic() + 30
    while "exit" not in {r.WhichOneof("record_type") for r in wandb_records(run_dir)} and time.monotonic() < ended:
        time.sleep(0.05)
    for record in wandb_records(run_dir):
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            rows.append((int(items["_step"]), {k: v for k, v in items.items() if not k.startswith("_")}))
    return rows


def wandb_records(run_dir: Path) -> Iterator[Any]:
    """Records of the files `run-*.wandb`: a log of blocks, 7 bytes of header before each piece, then protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    block = 32768
    for file in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        content, at, piece = file.read_bytes(), 7, b""
        while at + 7 <= len(content):
            if block - at % block < 7:
                at += block - at % block
                continue
            size, kind = struct.unpack_from("<HB", content, at + 4)
            piece += content[at + 7 : at + 7 + size]
            at += 7 + size
            if kind in (1, 4):  # whole, or the last piece
                record = Record()
                record.ParseFromString(piece)
                piece = b""
                yield record
