"""A stand-in for a vLLM server in this process: its protocol with a policy of ours behind it, and every way to fail.

It draws from the streams that `LocalGenerator` draws from, so what it is asked must come out as if decoded here.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cvxrl.policy.model import Policy
from cvxrl.rollout.generator import Sampling
from cvxrl.rollout.local_generator import LocalGenerator
from cvxrl.rollout.randomness import StreamKey
from cvxrl.rollout.vllm.facts import shape_of
from cvxrl.rollout.vllm.gloo import join, visit

Answer = tuple[int, Any]


@dataclass(frozen=True)
class Seeded(StreamKey):
    """The stream of a number, as a server knows it."""

    @property
    def number(self) -> int:
        return self.seed


class FakeVllm:
    """A server on a free port.

    Attributes:
        policy: what it computes with; its own, so that updates must arrive.
        label: of the weights that it has.
        asked: paths of all requests, in order.
        broken: by path, what is done instead of answering; returns the status and the body, or None for the answer.
        config: `/server_info`.
        forgotten: ends of names of tensors whose updates it ignores.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy, self.label, self.updating = policy, "default", False
        self.version = "0.32.0"
        self.asked: list[str] = []
        self.broken: dict[str, Callable[[], Answer | None]] = {}
        self.forgotten: tuple[str, ...] = ()
        self.shape = shape_of(policy)
        self.config: dict[str, Any] = {
            "model_config": {
                "dtype": str(policy.model.dtype),
                "max_model_len": policy.context,
                "logprobs_mode": "processed_logprobs",
            },
            "weight_transfer_config": {"backend": "cvxrl"},
        }
        self.before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
        self.group: Any = None
        self.sampler = LocalGenerator(_EndsAt(policy.model, policy.tokenizer))
        self._lock = threading.Lock()
        self._start(0)

    def _start(self, port: int) -> None:
        self._http = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """Nobody listens any more."""
        self._http.shutdown()
        self._http.server_close()

    def restart(self) -> None:
        """As it was started, with the weights of then."""
        with suppress(OSError):
            self.kill()
        self.policy.model.load_state_dict(self.before)
        self.label, self.group, self.updating = "default", None, False
        self._start(self.port)

    def answer(self, path: str, body: Any) -> Answer:
        """Status and body."""
        path, _, query = path.partition("?")
        self.asked.append(path)
        if path in self.broken and (instead := self.broken[path]()) is not None:
            return instead
        match path:
            case "/version":
                return 200, {"version": self.version}
            case "/server_info":
                assert query == "config_format=json"
                return 200, {"vllm_config": self.config}
            case "/get_world_size":
                return 200, {"world_size": 1}
            case "/weight_info":
                return 200, {"weight_version": self.label}
            case "/inference/v1/generate" if not body:
                return 400, {"error": {"message": "token_ids: field required"}}
            case "/inference/v1/generate":
                return 200, self._complete(body)
            case "/init_weight_transfer_engine":
                if (other := self._meet(**body["init_info"])) is not None:
                    return 500, {"error": {"message": f"Worker failed with error '{other}', please check the log"}}
            case "/start_weight_update":
                if self.updating:
                    return 500, {"error": {"message": "start_weight_update called while an update is active"}}
                self.updating = True
            case "/update_weights":
                if not self.updating:
                    return 500, {"error": {"message": "start_weight_update must be called first"}}
                self._load(body["update_info"])
            case "/finish_weight_update":
                if not self.updating:
                    return 500, {"error": {"message": "no update"}}
                self.updating, self.label = False, (body or {}).get("weight_version", self.label)
            case "/pause" | "/resume" | "/reset_prefix_cache":
                pass
            case _:
                return 404, {"detail": "Not Found"}
        return 200, {"message": "done"}

    def _meet(
        self, shape: dict[str, int], address: str = "", port: int = 0, size: int = 0, timeout: float = 0
    ) -> str | None:
        if shape != self.shape:
            return "another model than the policy"
        if address:
            self.group = join(visit(address, port, timeout), "127.0.0.1", 1, size, timeout)
        return None

    def _load(self, info: dict[str, Any]) -> None:
        if info.get("directory"):
            found = {}
            for file in Path(info["directory"]).glob("*.safetensors"):
                found |= load_file(file)
        else:
            found = {}
            for name, dtype, shape in zip(info["names"], info["dtypes"], info["shapes"], strict=True):
                found[name] = torch.empty(shape, dtype=getattr(torch, dtype))
                self.group.broadcast(found[name], 0).wait()
        kept = {name: t for name, t in found.items() if not name.endswith(self.forgotten or ("no name",))}
        self.policy.model.load_state_dict(kept, strict=False)

    def _complete(self, body: dict[str, Any]) -> Any:
        asked = body["sampling_params"]
        assert asked["ignore_eos"] and asked["logprobs"] == 0 and asked["n"] == 1
        stop = tuple(asked["stop_token_ids"])
        with self._lock:
            how = Sampling(asked["max_tokens"], asked["temperature"], asked["top_p"], stop)
            (episode,) = self.sampler.generate([body["token_ids"]], [[Seeded(asked["seed"], "", ())]], how)
        pairs = zip(episode.response_ids, episode.logprobs.tolist(), strict=True)
        choice = {
            "index": 0,
            "token_ids": episode.response_ids,
            "finish_reason": "length" if episode.truncated else "stop",
            "logprobs": {"content": [{"token_id": i, "logprob": x, "rank": 1, "top_logprobs": []} for i, x in pairs]},
            "weight_versions": [{"version": self.label, "start": 0, "end": len(episode.response_ids)}],
        }
        return {"request_id": "0", "choices": [choice]}


class _EndsAt(Policy):
    """A policy whose completions end where they are told to, and nowhere else."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        return ()


def hang() -> None:
    """Never answers, for as long as any test lasts."""
    time.sleep(30)


def _handler(server: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def _reply(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            status, answer = server.answer(self.path, body)
            raw = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            with suppress(OSError):
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

        do_GET = do_POST = _reply

        def log_message(self, *_: Any) -> None: ...

    return Handler
