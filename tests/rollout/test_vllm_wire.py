"""Between this process and a vLLM server: what is asked, what counts as an answer, and what ends the waiting."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from cvxrl.rollout.generator import Sampling
from cvxrl.rollout.vllm.beside import within
from cvxrl.rollout.vllm.crowd import ask_all, pause
from cvxrl.rollout.vllm.http import Garbled, Http, Refused, Trouble, Unanswered
from cvxrl.rollout.vllm.wire import Question, read

QUESTION = Question([5, 6], 2**63 - 1, Sampling(3, 0.7, 0.9), (1, 2))


def answer(ids: Any = (7, 8, 1), reason: str = "stop", **changes: Any) -> dict[str, Any]:
    content = [{"token_id": i, "logprob": -0.5} for i in ids]
    spans = [{"version": "run-3", "start": 0, "end": len(ids)}]
    choice = {"token_ids": list(ids), "finish_reason": reason, "logprobs": {"content": content}}
    return {"choices": [{**choice, "weight_versions": spans, **changes}]}


def test_a_question_names_all_that_could_have_another_default() -> None:
    assert QUESTION.body["token_ids"] == [5, 6]
    asked = QUESTION.body["sampling_params"]
    assert asked["seed"] == 2**63 - 1 and asked["temperature"] == 0.7 and asked["top_p"] == 0.9
    assert asked["max_tokens"] == 3 and asked["stop_token_ids"] == [1, 2] and asked["ignore_eos"] is True
    assert asked["top_k"] == 0 and asked["min_p"] == 0.0 and asked["logprobs"] == 0
    greedy = Question([5], 0, Sampling(3, 0.0, 0.9), ())
    assert greedy.parameters["top_p"] == 1.0, "the most probable token is in every nucleus"


@pytest.mark.parametrize(
    ("ids", "reason", "truncated"),
    [((7, 8, 1), "stop", False), ((2,), "stop", False), ((7, 8, 9), "length", True), ((7, 8, 2), "length", False)],
)
def test_an_answer_is_a_completion(ids: tuple[int, ...], reason: str, truncated: bool) -> None:
    found = read(answer(ids, reason), QUESTION, 10)
    assert found.token_ids == list(ids) and found.truncated is truncated and found.version == "run-3"
    assert found.logprobs == [-0.5] * len(ids)


@pytest.mark.parametrize(
    "given",
    [
        None,
        [],
        "ok",
        {"choices": []},
        answer(()),
        answer((7, 8)),
        answer((7, 1, 8)),
        answer((7, 8, 9, 1)),
        answer((7, 10, 1)),
        answer((7, -1, 1)),
        answer((7, True, 1)),
        answer(token_ids=None),
        answer(token_ids=[7, 9, 1]),
        answer(logprobs=None),
        answer(logprobs={"content": [{"token_id": i, "logprob": 0.5} for i in (7, 8, 1)]}),
        answer(logprobs={"content": [{"token_id": i, "logprob": float("nan")} for i in (7, 8, 1)]}),
        answer(logprobs={"content": [{"token_id": i, "logprob": -9999.0} for i in (7, 8, 1)]}),
        answer(logprobs={"content": [{"token_id": 7, "logprob": "-1"}]}),
    ],
)
def test_what_is_no_completion_of_the_prompt_is_refused(given: Any) -> None:
    with pytest.raises(Garbled):
        read(given, QUESTION, 10)


def test_a_completion_that_the_server_gave_up_is_asked_for_again() -> None:
    with pytest.raises(Unanswered):
        read(answer((7,), "abort"), QUESTION, 10)


def test_tokens_of_two_versions_have_none() -> None:
    spans = [{"version": "a", "start": 0, "end": 1}, {"version": "b", "start": 1, "end": 3}]
    assert read(answer(weight_versions=spans), QUESTION, 10).version is None
    assert read(answer(weight_versions=None), QUESTION, 10).version is None


def test_answers_come_in_the_order_of_the_questions() -> None:
    def ask(i: int) -> int:
        time.sleep(0.02 if i % 2 else 0)
        return i * i

    assert ask_all(range(9), ask, at_once=4, patience=5) == [i * i for i in range(9)]
    assert ask_all([], ask, at_once=4, patience=5) == []


def test_what_fails_is_asked_again_and_what_is_refused_is_not() -> None:
    tries: dict[int, int] = {}

    def ask(i: int) -> int:
        tries[i] = tries.get(i, 0) + 1
        if i == 1 and tries[i] < 3:
            raise Unanswered("gone") if tries[i] == 1 else Refused(500, "engine dead")
        return i

    assert ask_all(range(3), ask, at_once=2, patience=5) == [0, 1, 2]
    assert tries == {0: 1, 1: 3, 2: 1}

    def refuse(_: int) -> int:
        raise Refused(400, "too long")

    with pytest.raises(Refused, match="too long"):
        ask_all(range(3), refuse, at_once=2, patience=5)


def test_nonsense_is_not_asked_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cvxrl.rollout.vllm.crowd.pause", lambda _: 0.0)
    asked: list[int] = []

    def ask(i: int) -> int:
        asked.append(i)
        raise Garbled("hello")

    with pytest.raises(Garbled, match="hello"):
        ask_all([0], ask, at_once=1, patience=60)
    assert len(asked) == 5


def test_waiting_ends_when_nothing_comes_and_not_before() -> None:
    """A server that hangs is left after the patience; one that is slow but answers is not, however long all takes."""
    over = threading.Event()
    with pytest.raises(Unanswered, match=r"no answer for 0\.2 s"):
        ask_all(range(3), lambda _: over.wait(20), at_once=3, patience=0.2)
    over.set()

    def gone(_: int) -> int:
        raise Unanswered("connection refused")

    with pytest.raises(Unanswered, match="connection refused"):
        ask_all(range(2), gone, at_once=2, patience=0.3)

    def slow(i: int) -> int:
        time.sleep(0.1)
        return i

    assert ask_all(range(6), slow, at_once=1, patience=0.4) == list(range(6))


def test_pauses_grow_to_a_limit() -> None:
    assert [pause(i) for i in (1, 2, 3)] == [0.1, 0.2, 0.4]
    assert pause(50) == pause(10_000) == 5.0


def test_an_action_that_hangs_is_left_to_itself() -> None:
    over = threading.Event()
    with pytest.raises(Unanswered):
        within(0.1, lambda: over.wait(20))
    over.set()
    assert within(5, lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)


@contextmanager
def replying(reply: Callable[[BaseHTTPRequestHandler], None]) -> Iterator[str]:
    """Address of a server that does this with every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            reply(self)

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def sends(status: int, body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def reply(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return reply


def test_every_kind_of_trouble_has_its_name() -> None:
    with replying(sends(200, b'{"a": 1}')) as url:
        assert Http(url, 5).get("/") == {"a": 1}
    with pytest.raises(Unanswered):
        Http(url, 5).get("/")  # nobody listens any more
    with replying(sends(200, b"<html>")) as url, pytest.raises(Garbled):
        Http(url, 5).get("/")
    with replying(sends(503, b'{"error": {"message": "dead\\nengine"}}')) as url:
        with pytest.raises(Refused, match="HTTP 503: dead engine") as caught:
            Http(url, 5).get("/")
        assert not caught.value.final
    with replying(sends(404, b"nothing")) as url, pytest.raises(Refused, match="nothing") as caught:
        Http(url, 5).get("/")
    assert caught.value.final
    with replying(lambda handler: handler.wfile.write(b"\x00\x01garbage\n")) as url, pytest.raises(Trouble):
        Http(url, 5).get("/")
    with pytest.raises(Unanswered):
        Http("http://no.such.host.invalid:1", 5).get("/")


def test_a_server_that_sends_a_byte_now_and_then_cannot_hold_us() -> None:
    over = threading.Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not over.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()

    with replying(drip) as url:
        with pytest.raises(Unanswered):
            ask_all([0], lambda _: Http(url, 1).get("/"), at_once=1, patience=0.3)
        over.set()
