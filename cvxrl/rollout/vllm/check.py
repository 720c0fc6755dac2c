"""Whether vLLM computes with the weights that it was sent: a few completions, read again by the policy itself.

Weights can be old in one place and new in all others, so what looks at the first step alone sees nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cvxrl.errors import Problem
from cvxrl.policy.agreement import Mismatch, log_prob_tolerance, logit_size
from cvxrl.policy.model import Policy
from cvxrl.policy.probe import Probe
from cvxrl.rollout.generator import SamplerLost, Sampling
from cvxrl.rollout.local_generator import evaluating
from cvxrl.rollout.randomness import StreamKey
from cvxrl.rollout.vllm.wire import Completion, Question

# Prompts of random tokens, of these lengths, and tokens of each completion.
_PROMPTS, _TOKENS = (4, 9, 6, 12), 16


@dataclass(frozen=True)
class Check:
    """How far apart vLLM and the policy may be.

    Attributes:
        bf16: whether the trainer's forward pass runs under autocast.
        dtype: the lower of the formats in which the two compute.
        ratio_tolerance: `train.ratio_tolerance`; None is what rounding explains.
    """

    bf16: bool
    dtype: torch.dtype
    ratio_tolerance: float | None = None

    def require(
        self,
        policy: Policy,
        version: int,
        where: str,
        complete: Callable[[Sequence[Question]], list[Completion]],
    ) -> float:
        """Sample from random prompts at temperature 1 and read the completions again.

        Args:
            policy: whole, and as it was sent.
            version: whose it is.
            where: vLLM, in words.
            complete: asks vLLM.

        Returns:
            Largest |ratio - 1| of the two probabilities of a token.

        Raises:
            SamplerLost: they are further apart than may be.
        """
        prompts = Probe.random(policy.checked.vocabulary, [*_PROMPTS, 1], [1] * (len(_PROMPTS) + 1)).prompts[:-1]
        longest = min(_TOKENS, policy.context - max(_PROMPTS))
        questions = [
            Question(prompt, StreamKey(0, "check", (version, i)).number, Sampling(longest, 1.0), ())
            for i, prompt in enumerate(prompts)
        ]
        answers = complete(questions)
        theirs = [torch.tensor(answer.logprobs) for answer in answers]
        mine, size = self._read(policy, prompts, [answer.token_ids for answer in answers])
        found = Mismatch.of(mine, theirs)
        unlikely = max(float(part.abs().max()) for part in theirs)
        limit = log_prob_tolerance(policy.model, unlikely, size, self.dtype)
        given = self.ratio_tolerance
        if (found.ratio <= given) if given is not None else (found.log_ratio <= limit):
            return found.ratio
        allowed = f"train.ratio_tolerance is {given:.1e}" if given is not None else f"rounding explains {limit:.1e}"
        raise SamplerLost(
            Problem(
                f"{where} gives other probabilities than the weights that it was sent (version {version}): log-"
                f"probabilities differ by up to {found.log_ratio:.1e}, ratios from 1 by {found.ratio:.1e}; {allowed}",
                "rollout.engine",
                remedy="start it anew with `python -m cvxrl.serve`, and go on with --resume; or set "
                f"train.ratio_tolerance above {found.ratio:.1e} to train all the same, every ratio wrong by that",
            )
        )

    def _read(self, policy: Policy, prompts: list[list[int]], responses: list[list[int]]) -> tuple[list[Tensor], float]:
        """Log-probabilities of the responses' tokens, [T] each, and the size of the logits."""
        device = policy.device
        with evaluating(policy), torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits_NV = policy.response_outputs(prompts, responses).logits_NV
        logits_NV = logits_NV.float()
        ids_N = torch.tensor([token for response in responses for token in response], device=device)
        read_N = torch.log_softmax(logits_NV, dim=-1).gather(-1, ids_N.unsqueeze(-1)).squeeze(-1)
        return list(torch.split(read_N.cpu(), [len(response) for response in responses])), logit_size(logits_NV)
