"""The sending end of a weight update: over gloo, over NCCL by vLLM's own engine, or as files."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from torch import Tensor

from cvxrl.rollout.vllm.beside import Beside, within
from cvxrl.rollout.vllm.gloo import address_towards, join, listen
from cvxrl.rollout.vllm.http import Http, Trouble, Unanswered

Weights = Mapping[str, Tensor]


class Transport(Protocol):
    """Brings weights into a server whose update has been started, and that is about to be told to finish it."""

    def connect(self) -> None:
        """Meet the server's workers, anew after either side has gone.

        Raises:
            Trouble: they did not come.
        """
        ...

    def send(self, weights: Weights) -> None:
        """Send all of them.

        Raises:
            Trouble: they did not arrive.
        """
        ...


@dataclass
class GlooTransport:
    """Broadcasts over TCP, tensor by tensor, through the memory of both machines.

    Attributes:
        http: the server, whose address says by which of this machine's it can reach us.
        workers: processes of the server that hold weights.
        shape: of the policy, which the workers compare with theirs.
        group: the trainer and these workers, once they have met.
    """

    http: Http
    workers: int
    shape: Mapping[str, int]
    group: Any = None

    def connect(self) -> None:
        """See `Transport`."""
        self.group, timeout = None, self.http.timeout
        parts = urlsplit(self.http.url)
        own = address_towards(parts.hostname or "", parts.port or 80)
        store, size = listen(timeout), self.workers + 1
        where = {"address": own, "port": store.port, "size": size, "timeout": timeout, "shape": dict(self.shape)}
        joined = Beside(lambda: join(store, own, 0, size, timeout))
        self.http.post("/init_weight_transfer_engine", {"init_info": where})
        self.group = _met(joined, timeout)

    def send(self, weights: Weights) -> None:
        """See `Transport`; the collective runs beside the request, whose failure or time-out ends the wait for both."""
        what = {
            "names": list(weights),
            "dtypes": [str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()],
            "shapes": [list(tensor.shape) for tensor in weights.values()],
        }
        group, self.group = self.group, None  # of no use any more if this fails

        def broadcast() -> None:
            for tensor in weights.values():
                group.broadcast(tensor.cpu().contiguous(), 0).wait()

        sent = Beside(broadcast)
        self.http.post("/update_weights", {"update_info": what})
        _met(sent, self.http.timeout)
        self.group = group


@dataclass
class DirectoryTransport:
    """Safetensors in a folder that both sides see.

    Attributes:
        http: the server.
        folder: under the same path on both sides.
        shape: of the policy, which the workers compare with theirs.
    """

    http: Http
    folder: Path
    shape: Mapping[str, int]

    def connect(self) -> None:
        """See `Transport`."""
        self.http.post("/init_weight_transfer_engine", {"init_info": {"shape": dict(self.shape)}})

    def send(self, weights: Weights) -> None:
        """See `Transport`; the files are removed when the server has read them."""
        from safetensors.torch import save_file

        here = self.folder.absolute() / "weights"
        try:
            here.mkdir(parents=True, exist_ok=True)
            save_file({name: tensor.cpu().contiguous() for name, tensor in weights.items()}, here / "all.safetensors")
            self.http.post("/update_weights", {"update_info": {"directory": str(here)}})
        except OSError as error:
            raise Unanswered(f"{here}: {error.strerror or error}") from None
        finally:
            shutil.rmtree(here, ignore_errors=True)


@dataclass
class NcclTransport:
    """From GPU to GPU by vLLM's own engine, of which this side needs the other half: vLLM installed here too.

    Attributes:
        http: the server, started with vLLM's backend `nccl`.
        workers: processes of the server that hold weights.
        engine: vLLM's sender, once both sides have met.
    """

    http: Http
    workers: int
    engine: Any = None
    sending: Weights | None = None

    def connect(self) -> None:
        """The two sides meet when names and shapes are known, at the first `send`."""
        self.engine = None

    def send(self, weights: Weights) -> None:
        """See `Transport`."""
        self.sending = weights
        try:
            if self.engine is None:
                self.engine = within(self.http.timeout, self._meet)
            within(self.http.timeout, self.engine.send_weights)
        except Trouble:
            self.engine = None
            raise
        except (RuntimeError, ValueError, OSError) as error:
            self.engine = None
            raise Unanswered(f"NCCL: {error}") from None
        finally:
            self.sending = None

    def _meet(self) -> Any:
        from vllm.distributed.weight_transfer import ParamMeta, WeightSource, WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

        transport = self

        class Source(WeightSource):  # type: ignore[misc]
            """What is being sent."""

            def metadata(self) -> list[Any]:
                return [ParamMeta(name, t.dtype, tuple(t.shape)) for name, t in (transport.sending or {}).items()]

            def __iter__(self) -> Any:
                return iter((transport.sending or {}).items())

        parts = urlsplit(self.http.url)
        own, store = address_towards(parts.hostname or "", parts.port or 80), listen(self.http.timeout)
        port = store.port
        del store  # the port was free a moment ago; vLLM opens it itself
        info = NCCLTrainerInitInfo(own, port, self.workers + 1, rank=0)
        return WeightTransferTrainerFactory.trainer_init(info, client=_Control(self.http), source=Source())


@dataclass(frozen=True)
class _Control:
    """vLLM's `VLLMWeightSyncClient`; start and finish are `VllmServer`'s, around every transport alike."""

    http: Http

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self.http.post("/init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None:
        self.http.post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


def _met(joined: Beside[Any], timeout: float) -> Any:
    """Outcome of the trainer's half of a collective call, after the server has answered for its own.

    Raises:
        Unanswered: nothing in time, or the other side has gone.
    """
    try:
        return joined.result(timeout)
    except (RuntimeError, ValueError) as error:  # what torch.distributed raises
        raise Unanswered(f"gloo: {(str(error).splitlines() or [type(error).__name__])[0][:200]}") from None
