from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from reliability.harness import USUAL, ForkServer, Whole, train_whole


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def whole(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The usual case, undisturbed; what every other story of it must end in. Read only."""
    return train_whole(fork_server, USUAL, tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def interrupted(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The usual case, stopped by Ctrl-C after step 3 of 4, with checkpoints of steps 2 and 3. Copy it."""
    out = tmp_path_factory.mktemp("interrupted")
    fault = {"signal_after": [3]}
    assert fork_server.run(USUAL.arguments(out), out / "log.txt", fault) == 130
    return USUAL.folder(out)
