"""LCO in TRL: `LCOTrainer`, GRPOTrainer's loop around our exact losses.

TRL samples, rewards, buffers, logs, saves and steps; the advantages of the rewards and the loss of a batch are ours,
from hidden states and the output layer (`objectives/linear`), equal to those of `cvxrl train` on the same batch.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from cvxrl.advantages import compute_advantages
from cvxrl.errors import Problem, UserError
from cvxrl.integrations.trl_config import LCOConfig
from cvxrl.integrations.trl_task import recipe_task
from cvxrl.objectives.linear import Frozen, HiddenBatch, LinearHead, head_of, linear_objective, linear_statistics
from cvxrl.objectives.reduce import sequence_weights

from trl import GRPOTrainer  # isort: skip  # after trl_config, which looks at its version

__all__ = ["LCOConfig", "LCOTrainer", "recipe_task"]

Batch = dict[str, Any]


class LCOTrainer(GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer with the loss of a recipe's `objective`, `advantage` and `reduction`.

    Arguments are GRPOTrainer's, with an `LCOConfig`. A rollout that is used once is its own old policy. Where it is
    used again (`num_iterations`, `steps_per_generation`), what the policy said when it sampled is kept: hidden states
    and a copy of the output layer for LCO, log-probabilities for the others.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Build the trainer.

        Raises:
            UserError: `args` is no `LCOConfig`, the model's output layer is not one that the losses can be formed
                from, or the model is sharded, adapted to images, or balanced by a loss of its own.
        """
        super().__init__(*arguments, **options)
        if not isinstance(self.args, LCOConfig):
            raise UserError(Problem("LCOTrainer needs its own settings", "args", remedy="give an LCOConfig"))
        sharded = bool(self.is_fsdp_enabled or self.is_deepspeed_enabled)
        for wrong, what in (
            (sharded, "its weights are sharded, and the output layer must be whole"),
            (self._is_vlm, "it reads images, whose tokens the losses do not know"),
            (self.aux_loss_enabled, "its experts are balanced by a loss of their own"),
        ):
            if wrong:
                raise UserError(
                    Problem(f"LCOTrainer cannot train this model: {what}", "model", remedy="use cvxrl train")
                )
        self._sections = self.args.sections
        self._head: LinearHead = head_of(self.accelerator.unwrap_model(self.model), self.args.temperature)
        self._old_head: LinearHead | None = None
        self._last_rewards: Tensor | None = None

    # --- what is sampled

    def _calculate_rewards(self, *arguments: Any, **options: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(*arguments, **options)
        self._last_rewards = rewards
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> Batch:
        batch: Batch = super()._generate_and_score_completions(inputs)
        batch |= self._credit(len(batch["completion_ids"]))
        generate_every = self.args.steps_per_generation * self.num_iterations
        if self.model.training and generate_every != self.args.gradient_accumulation_steps:
            batch |= self._remember(batch)
        return batch

    def _credit(self, count: int) -> Batch:
        """Advantages of the completions of this process, and those of their whole groups; those that TRL logs too."""
        assert self._last_rewards is not None
        rewards_NF, size = (
            self._last_rewards,
            self.num_generations if self.model.training else self.num_generations_eval,
        )
        if bool(torch.isnan(rewards_NF).all(dim=1).any()):
            what = "a completion got no reward: every reward function returned None"
            raise UserError(Problem(what, "reward_funcs", remedy="let one of them reward every completion"))
        rewards_N = (rewards_NF * self.reward_weights.to(rewards_NF.device)).nansum(dim=1)
        rewards_PG = rewards_N.view(-1, size)
        alone = torch.zeros_like(rewards_PG)
        values_PG = compute_advantages(rewards_PG, self._sections.advantage) if size > 1 else alone
        logged = self._logs["advantages"]
        for _ in range(min(rewards_N.numel(), len(logged))):  # TRL's own, those of `scale_rewards`
            logged.pop()
        logged.extend(values_PG.flatten().tolist())
        first = self.accelerator.process_index * count
        return {
            "advantages": values_PG.flatten()[first : first + count],
            "group_advantages": values_PG.repeat_interleave(size, dim=0)[first : first + count],
        }

    @torch.no_grad()
    def _remember(self, batch: Batch) -> Batch:
        """What the policy that sampled says, for the steps in which it has moved."""
        size = self.args.per_device_train_batch_size
        names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
        parts = [
            self._hidden(self.model, {name: batch[name][start : start + size] for name in names})
            for start in range(0, len(batch["completion_ids"]), size)
        ]
        hidden_BTH = torch.cat(parts)
        if "old_logits" in self._sections.objective.needs:
            self._old_head = self._head.frozen()
            return {"old_hidden": hidden_BTH}
        mask_BT = batch["completion_mask"].bool()
        said = linear_statistics(
            hidden_BTH[mask_BT], self._head, batch["completion_ids"][mask_BT], chunk_tokens=self.args.chunk_tokens
        )
        old_BT = torch.zeros(mask_BT.shape, dtype=said.logprobs_N.dtype, device=mask_BT.device)
        old_BT[mask_BT] = said.logprobs_N
        return {"old_logprobs": old_BT}

    # --- the loss of a batch

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        mask_BT = _mask(inputs).bool()
        hidden_BTH = self._hidden(model, inputs)
        if not bool(mask_BT.any()):
            return (0.0 * hidden_BTH).sum()
        lengths_B = mask_BT.sum(dim=1)
        weights_N = self._weights(inputs, lengths_B)
        if "importance_sampling_ratio" in inputs:  # of vLLM's sampler, per token or per sequence
            weights_N = weights_N * inputs["importance_sampling_ratio"].expand(mask_BT.shape)[mask_BT]
        batch = self._batch(hidden_BTH[mask_BT], inputs, mask_BT)
        found = linear_objective(batch, self._sections.objective, weights_N, chunk_tokens=self.args.chunk_tokens)
        entropy_N = found.entropy_N
        if entropy_N is None:
            with torch.no_grad():
                entropy_N = linear_statistics(
                    batch.hidden_NH, batch.head, batch.actions_N, chunk_tokens=self.args.chunk_tokens
                ).entropy_N
        logged = self._metrics["train" if self.model.training else "eval"]
        for name, value_N in {"entropy": entropy_N, **found.metrics}.items():
            totals = self.accelerator.reduce(torch.stack([value_N.sum(), value_N.new_tensor(len(value_N))]), "sum")
            logged[name].append(float(totals[0] / totals[1]))
        # Processes' gradients are averaged, and the weights are those of the whole optimizer step.
        loss: Tensor = found.loss * self.accelerator.num_processes
        return loss

    def _batch(self, hidden_NH: Tensor, inputs: Batch, mask_BT: Tensor) -> HiddenBatch:
        lengths_B = mask_BT.sum(dim=1)
        number_B = torch.arange(int((lengths_B > 0).sum()), device=mask_BT.device)
        old_BTH, old_BT = inputs.get("old_hidden"), inputs.get("old_logprobs")
        frozen = None
        if old_BTH is not None:
            assert self._old_head is not None
            frozen = Frozen(old_BTH[mask_BT], self._old_head)
        return HiddenBatch(
            hidden_NH=hidden_NH,
            head=self._head,
            frozen=frozen,
            on_policy=old_BTH is None and old_BT is None,
            actions_N=inputs["completion_ids"][mask_BT],
            advantages_N=inputs["advantages"].repeat_interleave(lengths_B),
            group_advantages_NG=inputs["group_advantages"].repeat_interleave(lengths_B, dim=0),
            old_logprobs_N=None if old_BT is None else old_BT[mask_BT],
            sequence_N=number_B.repeat_interleave(lengths_B[lengths_B > 0]),
            group_S=number_B,
        )

    def _weights(self, inputs: Batch, lengths_B: Tensor) -> Tensor:
        """Weight of every token, normalised over the whole optimizer step: all its batches, of all processes."""
        window = self._optimizer_step_of(inputs)
        counted = [sum(int(_mask(part).sum()) for part in window), sum(len(_mask(part)) for part in window)]
        totals = self.accelerator.reduce(torch.tensor(counted, device=lengths_B.device), "sum")
        longest = self.max_completion_length or 0
        weights_B = sequence_weights(lengths_B.cpu(), self._sections.reduction, longest, *map(int, totals.tolist()))
        return weights_B.float().to(lengths_B.device).repeat_interleave(lengths_B)

    def _optimizer_step_of(self, inputs: Batch) -> list[Batch]:
        buffered = self._buffered_inputs or []
        at = next((i for i, part in enumerate(buffered) if part is inputs), None)
        if at is None:  # an evaluation, or a batch that somebody made
            return [inputs]
        count = self.args.gradient_accumulation_steps
        return list(buffered[at - at % count : at - at % count + count])

    def _hidden(self, model: Any, inputs: Batch) -> Tensor:
        """Last hidden states that predict the completions' tokens, [B, T, H], with gradient.

        The pass goes through the model as it is wrapped, so that gradients are averaged over processes; of its logits,
        those of one position are formed.
        """
        ids_BL = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        mask_BL = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        inner = self.accelerator.unwrap_model(model)
        inner = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
        given: Batch = {"input_ids": ids_BL, "attention_mask": mask_BL, "use_cache": False}
        known = inspect.signature(type(inner).forward).parameters
        if "logits_to_keep" in known:
            given["logits_to_keep"] = 1
        if "position_ids" in known:  # prompts are padded on the left, and positions count from their first token
            given["position_ids"] = (mask_BL.cumsum(dim=1) - 1).clamp(min=0)
        seen: list[Any] = []
        hook = inner.base_model.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            with self.accelerator.autocast():
                model(**given)
        finally:
            hook.remove()
        hidden_BLH: Tensor = seen[-1].last_hidden_state
        length = inputs["completion_ids"].shape[1]
        return hidden_BLH[:, -length - 1 : -1]


def _mask(inputs: Batch) -> Tensor:
    """Tokens that are learned from: the completion's, without what tools said in it."""
    mask_BT: Tensor = inputs["completion_mask"]
    return mask_BT * inputs["tool_mask"] if "tool_mask" in inputs else mask_BT
