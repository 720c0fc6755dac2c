import gc
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cvxrl.cli import main

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# A worker a core (pytest-xdist), so a thread a worker, here and in the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tests send it; a shell's `nohup` would have it ignored, here and in the processes that tests start.
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection() -> None:
    """Importing makes hundreds of thousands of objects that stay; looking through them for garbage is a fifth of it."""
    gc.disable()


def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def no_figure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small runs train in less time than their curves are drawn in: only tests marked `figures` draw them."""
    if "cvxrl.engine.session" in sys.modules and request.node.get_closest_marker("figures") is None:
        monkeypatch.setattr("cvxrl.report.curves.plot_curves", lambda *_: None)


@pytest.fixture
def recipes() -> Path:
    return ROOT / "recipes"


@dataclass
class Done:
    code: int
    out: str
    err: str


@pytest.fixture
def cvxrl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs the command in an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["cvxrl", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as error:
            code = int(error.code or 0)
        captured = capsys.readouterr()
        return Done(code, captured.out, captured.err)

    return call
