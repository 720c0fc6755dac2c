"""vLLM in the process that trains: one engine a process, with a copy of the policy of its own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cvxrl.policy.model import Policy
from cvxrl.recipe.engine import VllmSpec
from cvxrl.rollout.vllm.http import Unanswered
from cvxrl.rollout.vllm.transport import Weights
from cvxrl.rollout.vllm.versions import require_vllm
from cvxrl.rollout.vllm.wire import Completion, Question, read


@dataclass
class Colocated:
    """See `cvxrl.rollout.vllm.generator.Place`.

    Attributes:
        engine: vLLM's `LLM`.
        vocabulary: number of token ids.
    """

    engine: Any
    vocabulary: int

    @classmethod
    def start(cls, spec: VllmSpec, policy: Policy, vocabulary: int) -> Colocated:
        """Load the policy a second time.

        Args:
            spec: recipe section `rollout.engine`.
            policy: gives shapes and first weights.
            vocabulary: number of token ids.

        Raises:
            UserError: vLLM is not installed here, or in a version that was not tested.
        """
        require_vllm("rollout.engine.mode")
        # In a process of its own the engine could not take tensors from this one; the switch is read at import.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        from vllm import LLM

        launched = "external_launcher" if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
        with tempfile.TemporaryDirectory(prefix="cvxrl-vllm-") as folder, policy.whole():
            policy.save(Path(folder))
            engine = LLM(
                folder,
                dtype=str(policy.model.dtype).removeprefix("torch."),
                logprobs_mode="processed_logprobs",
                generation_config="vllm",
                gpu_memory_utilization=spec.memory,
                distributed_executor_backend=launched,
                weight_transfer_config={"backend": "cvxrl"},
            )
        engine.init_weight_transfer_engine({"init_info": {}})
        return cls(engine, vocabulary)

    def complete(self, questions: Sequence[Question]) -> list[Completion]:
        """Completions in the order of the questions."""
        from vllm import SamplingParams

        label = self.version()
        outputs = self.engine.generate(
            [{"prompt_token_ids": question.prompt} for question in questions],
            [SamplingParams(**question.parameters) for question in questions],
            use_tqdm=False,
        )
        return [
            read(_as_served(output.outputs[0], label), question, self.vocabulary)
            for output, question in zip(outputs, questions, strict=True)
        ]

    def version(self) -> str:
        """Label of the weights."""
        return str(self.engine.get_weight_version())

    def load(self, weights: Weights, label: str, *, anew: bool) -> None:
        """Replace the weights and forget what was computed with the old ones."""
        try:
            self.engine.start_weight_update()
            self.engine.update_weights({"update_info": {"tensors": list(weights.items())}})
            self.engine.finish_weight_update(label)
            self.engine.reset_prefix_cache()
        except (RuntimeError, ValueError) as error:
            raise Unanswered(str(error).splitlines()[0][:200]) from error


def _as_served(output: Any, label: str) -> dict[str, Any]:
    """A completion in the form in which a server sends it."""
    ids = list(output.token_ids)
    said = [{"token_id": i, "logprob": at[i].logprob} for i, at in zip(ids, output.logprobs, strict=True)]
    choice = {
        "token_ids": ids,
        "finish_reason": output.finish_reason,
        "logprobs": {"content": said},
        "weight_versions": [{"version": label}],
    }
    return {"choices": [choice]}
