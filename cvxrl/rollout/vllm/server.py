"""A vLLM server as a place that completes token ids and takes weights."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cvxrl.rollout.vllm.beside import within
from cvxrl.rollout.vllm.crowd import ask_all, pause
from cvxrl.rollout.vllm.http import Http, Refused, Trouble
from cvxrl.rollout.vllm.transport import Transport, Weights
from cvxrl.rollout.vllm.wire import PATH, Completion, Question, read


@dataclass
class VllmServer:
    """See `cvxrl.rollout.vllm.generator.Place`.

    Attributes:
        http: the server.
        transport: how weights reach it.
        vocabulary: number of token ids.
        at_once: completions asked for at a time.
    """

    http: Http
    transport: Transport
    vocabulary: int
    at_once: int

    def complete(self, questions: Sequence[Question]) -> list[Completion]:
        """Completions in the order of the questions.

        Raises:
            Trouble: the server does not answer.
        """

        def ask(question: Question) -> Completion:
            return read(self.http.post(PATH, question.body), question, self.vocabulary)

        return ask_all(questions, ask, at_once=self.at_once, patience=self.http.timeout)

    def version(self) -> str:
        """Label of the weights that the server has; one that is being restarted is waited for.

        Raises:
            Trouble: the server does not answer.
        """
        (found,) = ask_all(["/weight_info"], self.http.get, at_once=1, patience=self.http.timeout)
        return str(found.get("weight_version")) if isinstance(found, dict) else ""

    def load(self, weights: Weights, label: str, *, anew: bool) -> None:
        """Replace the server's weights and forget what was computed with the old ones.

        An update that breaks off is begun again with all weights, after what is left of it has been finished.

        Args:
            weights: all of them.
            label: what the server is to call them.
            anew: meet the workers again first, since server or trainer has been restarted.

        Raises:
            Trouble: it could not be done in the time that an answer may take.
        """
        deadline, attempt = time.monotonic() + self.http.timeout, 0
        while True:
            try:
                if anew:
                    self._within(self.transport.connect)
                self._ask("POST", "/pause?mode=abort")
                self._start()
                self._within(lambda: self.transport.send(weights))
                self._ask("POST", "/finish_weight_update", {"weight_version": label})
                self._ask("POST", "/reset_prefix_cache")
                self._ask("POST", "/resume")
                return
            except Trouble as trouble:
                attempt += 1
                wait = pause(attempt)
                if (isinstance(trouble, Refused) and trouble.final) or time.monotonic() + wait > deadline:
                    raise
                anew = True
                time.sleep(wait)

    def _start(self) -> None:
        """Begin an update; one that was left in the middle, which the server refuses to begin another in, is ended."""
        try:
            self._ask("POST", "/start_weight_update")
        except Refused:
            with contextlib.suppress(Refused):
                self._ask("POST", "/finish_weight_update")
            self._ask("POST", "/start_weight_update")

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        return self._within(lambda: self.http.ask(method, path, body))

    def _within(self, action: Any) -> Any:
        # A transport waits for its request and then for its own half of it.
        return within(2 * self.http.timeout, action)
