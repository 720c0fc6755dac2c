"""A gloo group of one trainer (rank 0) and the workers of a server, beside whatever groups either side has."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any


def listen(timeout: float) -> Any:
    """A store on a free port of this machine, at which the members of a group find each other."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=timeout))


def visit(address: str, port: int, timeout: float) -> Any:
    """The store of a trainer, seen from a worker."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=timeout))


def join(store: Any, own: str, rank: int, size: int, timeout: float) -> Any:
    """The group, once all are there.

    Args:
        store: of `listen` or `visit`.
        own: address of this machine that the others reach; gloo would take the one of the machine's name, which may be
            none.
        rank: 0 for the trainer.
        size: of the group.
        timeout: of joining and of every broadcast, in seconds.
    """
    from torch.distributed import ProcessGroupGloo

    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=own)]
    options._timeout = timedelta(seconds=timeout)
    return ProcessGroupGloo(store, rank, size, options)


def address_towards(host: str, port: int) -> str:
    """Address of this machine that ``host`` can reach it by; sends nothing."""
    family, kind, proto, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, proto) as probe:
        probe.connect(target)
        return str(probe.getsockname()[0])
