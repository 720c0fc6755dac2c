"""Completions by vLLM: weights are brought to it and checked at every update, and every completion says whose it is."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

import torch
from torch import Tensor

from cvxrl.errors import Problem, UserError
from cvxrl.policy.model import Policy
from cvxrl.rollout.generator import Episode, SamplerLost, Sampling
from cvxrl.rollout.randomness import StreamKey
from cvxrl.rollout.vllm.check import Check
from cvxrl.rollout.vllm.http import Trouble
from cvxrl.rollout.vllm.weights import stored_weights
from cvxrl.rollout.vllm.wire import Completion, Question

# Restarts of a server within one call of `generate`, after which something else is wrong.
_RESTARTS = 5


class Place(Protocol):
    """Where vLLM runs."""

    def complete(self, questions: Sequence[Question]) -> list[Completion]:
        """Completions in the order of the questions; `Trouble` where there are none."""
        ...

    def version(self) -> str:
        """Label of the weights that are there."""
        ...

    def load(self, weights: Mapping[str, Tensor], label: str, *, anew: bool) -> None:
        """Replace the weights; ``anew`` where the place may be another than before."""
        ...


class Ranks(Protocol):
    """The processes that train together: the first brings the weights, all may ask (`cvxrl.engine.world.World`)."""

    @property
    def is_main(self) -> bool:
        """Whether this is the first one."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """What every process gave."""
        ...


@dataclass
class VllmGenerator:
    """See `cvxrl.rollout.generator.Generator`.

    Attributes:
        place: where vLLM runs.
        where: the same in words.
        policy: whose weights are to be there.
        check: compares what vLLM and the policy say of the same tokens.
        ranks: `sync` is called by all of them; nothing else talks to the others.
        brings: whether this process brings the weights: the first one, or each to a place of its own.
        context: longest sequence that vLLM takes, in tokens.
        dtype: data type of vLLM's parameters.
        timeout: longest wait in seconds.
        vllm: its version.
        version: what episodes are marked with.
        name: begins the labels of this run's weights, so that a server with another's, or its own, is noticed.
        sent: label of the weights that were brought last.
    """

    place: Place
    where: str
    policy: Policy
    check: Check
    ranks: Ranks
    brings: bool
    context: int
    dtype: torch.dtype
    timeout: float
    vllm: str = ""
    version: int = 0
    name: str = ""
    sent: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Agree on a name."""
        self.name = self.name or self.ranks.gather(uuid4().hex[:12])[0]

    @property
    def described(self) -> str:
        """Who samples, for a run's record; without the address, which may change."""
        return f"vLLM {self.vllm}, {str(self.dtype).removeprefix('torch.')}"

    @property
    def _label(self) -> str:
        return f"{self.name}-{self.version}"

    def sync(self, policy: Policy, version: int) -> dict[str, float]:
        """Bring the weights there and compare a few completions, unless this version is there already.

        Returns:
            `sync/ratio_deviation`: largest |ratio - 1| of vLLM's and the policy's probabilities of the same tokens;
            `time/sync_s`.

        Raises:
            SamplerLost: the weights do not arrive, or the probabilities are others.
        """
        self.policy, self.version = policy, version
        found: dict[str, float] = {}
        problems: tuple[Problem, ...] = ()
        with policy.whole():
            if self.brings:
                try:
                    found = self._bring()
                except UserError as error:
                    problems = error.problems
        outcomes = self.ranks.gather((found, problems))
        for _, told in outcomes:
            if told:
                lost = SamplerLost(*told)
                lost.everywhere = True
                raise lost
        self.sent = self._label
        return dict(outcomes[0][0])

    def generate(
        self, prompts: Sequence[list[int]], keys: Sequence[Sequence[StreamKey]], sampling: Sampling
    ) -> list[Episode]:
        """See `cvxrl.rollout.generator.Generator`.

        Completions of other weights than those of the last `sync` are made again once the right ones are there: a
        server that was restarted has its old ones.
        """
        ends = tuple(sorted({*self.policy.end_ids, *sampling.stop_ids}))
        questions = [
            Question(prompt, key.number, sampling, ends)
            for prompt, streams in zip(prompts, keys, strict=True)
            for key in streams
        ]
        self._require_room(questions)
        if self.sent is None:
            self._restore()
        answers: dict[int, Completion] = {}
        for _ in range(_RESTARTS):
            missing = [i for i in range(len(questions)) if i not in answers]
            for i, answer in zip(missing, self._complete([questions[i] for i in missing]), strict=True):
                if answer.version == self._label:
                    answers[i] = answer
            if len(answers) == len(questions):
                return [self._episode(question, answers[i]) for i, question in enumerate(questions)]
            self._restore()
        raise self._lost("its weights are replaced again and again: no two runs can share a server")

    def _episode(self, question: Question, answer: Completion) -> Episode:
        return Episode(question.prompt, answer.token_ids, torch.tensor(answer.logprobs), answer.truncated, self.version)

    def _require_room(self, questions: Sequence[Question]) -> None:
        longest = max((len(q.prompt) + q.sampling.max_new_tokens for q in questions), default=0)
        if longest > self.context:
            raise UserError(
                Problem(
                    f"a prompt and its completion may take {longest} tokens, and {self.where} takes {self.context}",
                    "rollout.engine",
                    remedy=f"start it with --max-model-len {longest} or more, or lower rollout.max_new_tokens",
                )
            )

    def _complete(self, questions: Sequence[Question]) -> list[Completion]:
        try:
            return self.place.complete(questions)
        except Trouble as trouble:
            raise self._lost(str(trouble)) from None

    def _bring(self) -> dict[str, float]:
        """Weights there, and checked; nothing where they are."""
        start = time.perf_counter()
        try:
            there = self.place.version()
            if there == self._label == self.sent:
                return {}
            self.place.load(stored_weights(self.policy, self.dtype), self._label, anew=there != self.sent)
        except Trouble as trouble:
            raise self._lost(str(trouble)) from None
        self.sent = self._label
        deviation = self.check.require(self.policy, self.version, self.where, self._complete)
        return {"sync/ratio_deviation": deviation, "time/sync_s": time.perf_counter() - start}

    def _restore(self) -> None:
        """The weights of the last `sync` are there again; the first process brings them, others wait for it."""
        if self.brings:
            self.sent = None
            self._bring()
            return
        end = time.monotonic() + self.timeout
        try:
            while self.place.version() != self._label:
                if time.monotonic() > end:
                    raise self._lost(f"it has other weights, and for {self.timeout:g} s nobody brought the right ones")
                time.sleep(0.5)
        except Trouble as trouble:
            raise self._lost(str(trouble)) from None

    def _lost(self, reason: str) -> SamplerLost:
        return SamplerLost(
            Problem(
                f"{self.where}: {reason}",
                "rollout.engine",
                remedy="see to it (its log says more), then go on with --resume",
            )
        )
