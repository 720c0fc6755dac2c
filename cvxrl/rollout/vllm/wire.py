"""A completion as it goes over the wire: vLLM's endpoint that takes token ids and gives token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cvxrl.rollout.generator import Sampling
from cvxrl.rollout.vllm.http import Garbled, Unanswered

PATH = "/inference/v1/generate"


@dataclass(frozen=True)
class Question:
    """One completion to be made.

    Attributes:
        prompt: token ids.
        seed: of its own random numbers, so that it does not depend on what else is asked.
        sampling: how tokens are drawn.
        end_ids: tokens that end it.
    """

    prompt: list[int]
    seed: int
    sampling: Sampling
    end_ids: tuple[int, ...]

    @property
    def parameters(self) -> dict[str, Any]:
        """Sampling parameters of vLLM, every one that could have another default given."""
        return {
            "n": 1,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p if self.sampling.temperature else 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "seed": self.seed,
            "max_tokens": self.sampling.max_new_tokens,
            # Ends are ours alone: the server's tokenizer and generation config name others.
            "ignore_eos": True,
            "stop_token_ids": list(self.end_ids),
            "logprobs": 0,
            "detokenize": False,
        }

    @property
    def body(self) -> dict[str, Any]:
        """The request."""
        return {"token_ids": self.prompt, "sampling_params": self.parameters}


@dataclass(frozen=True)
class Completion:
    """What came back.

    Attributes:
        token_ids: the end token included, if it was reached.
        logprobs: of each token under the distribution that it was drawn from.
        truncated: it reached the length limit.
        version: label of the weights that made all of it; None if they changed meanwhile.
    """

    token_ids: list[int]
    logprobs: list[float]
    truncated: bool
    version: str | None


def read(answer: Any, question: Question, vocabulary: int) -> Completion:
    """What an answer says.

    Args:
        answer: from JSON.
        question: what was asked.
        vocabulary: number of token ids.

    Raises:
        Garbled: it is no answer to the question.
        Unanswered: the server gave the completion up.
    """
    try:
        choice = answer["choices"][0]
        ids, reason = choice["token_ids"], choice["finish_reason"]
        said = choice["logprobs"]["content"] if reason != "abort" else []
        logprobs = [float(token["logprob"]) for token in said]
        spans = choice["weight_versions"] or []
        labels = {str(span["version"]) for span in spans}
        named = [token["token_id"] for token in said]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        what = sorted(answer) if isinstance(answer, Mapping) else type(answer).__name__
        raise Garbled(f"{PATH} was answered without completion ({type(error).__name__}, {what})") from None
    if reason == "abort":
        raise Unanswered("the server gave up completions")
    if not _fits(ids, question, vocabulary) or named != ids or not all(-9000 < x <= 1e-3 for x in logprobs):
        raise Garbled(f"{PATH} was answered with what is no completion of the prompt")
    # At the length limit vLLM calls it `length`, end token or not.
    truncated = ids[-1] not in question.end_ids
    return Completion(ids, logprobs, truncated, labels.pop() if len(labels) == 1 else None)


def _fits(ids: Any, question: Question, vocabulary: int) -> bool:
    """Whether token ids are a completion: of the vocabulary, ended once at its end, or as long as may be."""
    if not isinstance(ids, list) or not ids or not all(type(i) is int and 0 <= i < vocabulary for i in ids):
        return False
    if set(question.end_ids).intersection(ids[:-1]):
        return False
    longest = question.sampling.max_new_tokens
    return len(ids) == longest or (len(ids) < longest and ids[-1] in question.end_ids)
