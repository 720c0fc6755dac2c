import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from forked import Forked
from known_policies import probe_once, read_once

from cvxrl.cli import main
from cvxrl.runs import provenance

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
    """The same holds for what the first policy, and each process that is forked here, would import."""
    if "cvxrl.engine.session" in sys.modules:
        from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM  # noqa: F401
    gc.freeze()
    gc.enable()


SLOW = pytest.StashKey[list[str]]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Remember the slow ones before they are deselected."""
    config.stash[SLOW] = [item.nodeid for item in items if item.get_closest_marker("slow")]


@pytest.fixture(scope="session")
def slow_tests(pytestconfig: pytest.Config) -> list[str]:
    """Names of the slow tests among those that were collected."""
    return pytestconfig.stash[SLOW]


@pytest.fixture(autouse=True, scope="session")
def nothing_twice() -> Iterator[None]:
    """The checkout does not change while it is tested, and what tests write need not outlive a power cut.

    A run asks git three times and syncs thirty files. Processes that tests start do so as ever.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(provenance, "_git", cache(provenance._git))
        if "cvxrl.policy.load" in sys.modules:
            read_once(patch)
        yield


# Tests of what is found out about a policy, of one that is split over processes, of recorded numbers, of whole pages.
PROBING = ("policy", "rollout", "ranks", "trajectories", "tests")


@pytest.fixture(autouse=True)
def probed_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short ways that serve a known policy are found once, but where that is what is tested."""
    if "cvxrl.rollout.choice" in sys.modules and request.path.parent.name not in PROBING:
        probe_once(monkeypatch)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are trained in forked processes; the slow tests start whole ones."""
    from cvxrl.imports import loading_libraries

    with loading_libraries():  # which every child would do again
        import cvxrl.engine.session  # noqa: F401
    starting = SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr("cvxrl.comparison.train.subprocess", starting)


@pytest.fixture(autouse=True)
def no_figure(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small runs train in less time than their curves are drawn in: only tests marked `figures` draw them."""
    if "cvxrl.engine.session" in sys.modules and request.node.get_closest_marker("figures") is None:
        monkeypatch.setattr("cvxrl.report.curves.plot_curves", lambda *_: None)


@pytest.fixture
def recipes() -> Path:
    return ROOT / "recipes"


@pytest.fixture(autouse=True)
def few_are_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's first step is checked at other batch sizes on 4 sequences instead of 32, but for tests of the check."""
    if "cvxrl.engine.self_check" in sys.modules:
        monkeypatch.setattr("cvxrl.engine.self_check._FEW", 4)


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
