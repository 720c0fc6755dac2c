"""JSON over HTTP with an end: what was asked, its answer, or what kind of trouble came instead of one."""

from __future__ import annotations

import http.client
import json
import os
import re
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

_SHOWN = 300


class Trouble(Exception):
    """No usable answer; the text says why in one line."""


class Unanswered(Trouble):
    """Nobody is there, the connection broke, or it takes too long."""


class Garbled(Trouble):
    """An answer that is none: no JSON, or not what was asked for."""


class Refused(Trouble):
    """The server said no.

    Attributes:
        status: HTTP status; from 500 on the fault is the server's own, and it may be asked again.
    """

    def __init__(self, status: int, text: str) -> None:
        """Status and what the server said."""
        super().__init__(f"HTTP {status}: {text}" if text else f"HTTP {status}")
        self.status = status

    @property
    def final(self) -> bool:
        """Whether asking again is pointless."""
        return self.status < 500 and self.status not in (408, 425, 429)


@dataclass(frozen=True)
class Http:
    """A server.

    The standard library's client: it needs no package that an environment may lack or have in another version. Proxies
    of the environment are not asked, since a sampler is a machine of one's own. The key of a server that was started
    with one is read from VLLM_API_KEY, as vLLM itself does.

    Attributes:
        url: http://host:port.
        timeout: longest wait in seconds for an answer.
    """

    url: str
    timeout: float

    def get(self, path: str) -> Any:
        """Answer to GET; see `ask`."""
        return self.ask("GET", path)

    def post(self, path: str, body: Any = None) -> Any:
        """Answer to POST with a JSON body; see `ask`."""
        return self.ask("POST", path, body)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer, from JSON.

        Raises:
            Trouble: there is none.
        """
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("VLLM_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=self.timeout) as response:
                raw = response.read()
        except urllib.error.HTTPError as error:
            raise Refused(error.code, _said(error)) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise Unanswered(str(reason) or type(reason).__name__) from None
        try:
            return json.loads(raw) if raw else None
        except ValueError:
            raise Garbled(f"{path} was answered with no JSON: {raw[:60]!r}") from None


def _said(error: urllib.error.HTTPError) -> str:
    """What a refusal says, in one line."""
    try:
        text = error.read(20_000).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        document = json.loads(text)
        found = document.get("error", document.get("detail", text)) if isinstance(document, dict) else text
        text = str(found.get("message", found)) if isinstance(found, dict) else str(found)
    except ValueError:
        pass
    text = " ".join(text.split())
    # What a worker raised comes wrapped in advice to read the server's log.
    inner = re.search(r"Worker failed with error '(.*)', please check", text)
    return (inner[1] if inner else text)[:_SHOWN]
