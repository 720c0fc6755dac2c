"""A causal language model as a policy over its own tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import Parameter

from cvxrl.policy.adapter import has_adapter, load_adapter, save_adapter, without_adapter
from cvxrl.policy.checked import Checked
from cvxrl.policy.probe import Vocabulary
from cvxrl.policy.rows import logit_rows
from cvxrl.policy.saved import load_weights, save_weights
from cvxrl.policy.ways import Ways, hidden_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cvxrl.policy.sharding import Sharding


@dataclass(frozen=True)
class ResponseOutputs:
    """What a policy computes at N response tokens.

    Attributes:
        hidden_NH: last hidden states, after the final norm; [N, 0] where the model does not give them.
        logits_NV: logits.
    """

    hidden_NH: Tensor
    logits_NV: Tensor


@dataclass(frozen=True)
class Policy:
    """A transformers causal LM with its tokenizer.

    Attributes:
        model: the network; its logits divided by the sampling temperature define the policy.
        tokenizer: has a padding token.
        sharding: how its parameters are split over processes, if they are.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    sharding: Sharding | None = None

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def pad_id(self) -> int:
        """Token id used for padding; its positions are always masked."""
        return int(self.tokenizer.pad_token_id)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Token ids that end a completion: the tokenizer's and the generation config's."""
        configured = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = configured if isinstance(configured, list) else [configured]
        return tuple(sorted({int(i) for i in [*ids, self.tokenizer.eos_token_id] if i is not None}))

    @property
    def context(self) -> int:
        """Longest sequence the model accepts, in tokens."""
        return int(getattr(self.model.config, "max_position_embeddings", 0) or 1 << 30)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; templates already hold their special tokens, so none are added."""
        return [list(ids) for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    def openings(self, texts: Sequence[str], encoded: Sequence[list[int]]) -> list[list[int]]:
        """Special tokens that the tokenizer itself puts before each text, such as one that begins a text.

        Args:
            texts: not yet holding them.
            encoded: their token ids without special tokens; an empty one has no opening.
        """
        whole = self.tokenizer(list(texts))["input_ids"] if texts else []
        return [_before(ids, list(full)) for ids, full in zip(encoded, whole, strict=True)]

    def decode(self, responses: Sequence[Sequence[int]], kept: Collection[int] = ()) -> list[str]:
        """Text of each response, without special tokens but those in ``kept``."""
        if not kept:
            return list(self.tokenizer.batch_decode([list(ids) for ids in responses], skip_special_tokens=True))
        dropped = {*self.tokenizer.all_special_ids} - {*kept}
        shown = [[i for i in ids if i not in dropped] for ids in responses]
        return list(self.tokenizer.batch_decode(shown, skip_special_tokens=False))

    @cached_property
    def checked(self) -> Checked:
        """What agrees with the model's own forward pass.

        Raises:
            UserError: that pass cannot be used, see `Checked.of`.
        """
        special = set(getattr(self.tokenizer, "all_special_ids", ()))
        embedding = self.model.get_input_embeddings()
        rows = int(getattr(embedding, "num_embeddings", 0)) or int(self.model.config.get_text_config().vocab_size)
        known = min(rows, len(self.tokenizer)) if hasattr(self.tokenizer, "__len__") else rows
        with self.whole(), self.activated():
            ordinary = [i for i in range(known) if i not in special] or [0]
            return Checked.of(self.model, Vocabulary(ordinary, [i for i in (self.pad_id, *self.end_ids) if i < rows]))

    @property
    def ways(self) -> Ways:
        """The short ways to its logits that agree with the model's own forward pass."""
        return self.checked.ways

    def response_outputs(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> ResponseOutputs:
        """Last hidden states and raw logits at every response token, sequence after sequence.

        Prompts that several responses share run once, where that agrees with the model's own forward pass.
        """

        def compute() -> tuple[Tensor, Tensor]:
            self._cover(prompts, responses)
            if not self.ways.head:
                return logit_rows(self.model, prompts, responses, padded=self.ways.padded)
            hidden_NH = hidden_states(self.model, prompts, responses, self.ways)
            return hidden_NH, self.model.get_output_embeddings()(hidden_NH)

        return ResponseOutputs(*self.run(compute))

    def response_hidden(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Tensor:
        """Last hidden states that predict the response tokens, sequence after sequence, [N, H]; no logits."""

        def compute() -> Tensor:
            self._cover(prompts, responses)
            return hidden_states(self.model, prompts, responses, self.ways)

        found: Tensor = self.run(compute)
        return found

    def _cover(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> None:
        read = [len(p) + len(r) - 1 for p, r in zip(prompts, responses, strict=True)]
        if read:
            self.checked.cover(min(map(len, prompts)), max(read))

    def activated(self) -> AbstractContextManager[None]:
        """Inside this context the model computes this policy."""
        return nullcontext()

    def whole(self) -> AbstractContextManager[None]:
        """Inside this context all parameters are at hand; of a sharded policy, as they are now (`Sharding.whole`)."""
        return nullcontext() if self.sharding is None else self.sharding.whole()

    def run(self, compute: Callable[[], Any]) -> Any:
        """What ``compute`` returns: tensors that it computes from parameters, with gradient (`Sharding.run`)."""
        return compute() if self.sharding is None else self.sharding.run(compute)

    @property
    def trained(self) -> list[Parameter]:
        """Parameters that training moves: all of them, or the adapter's."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def as_loaded(self) -> Policy | None:
        """The policy that training started from, if an adapter is all that has changed since; else None."""
        return _WithoutAdapter(self.model, self.tokenizer, self.sharding) if has_adapter(self.model) else None

    def save(self, directory: Path) -> None:
        """Write a plain Hugging Face directory (safetensors) that `from_pretrained` loads; an adapter is merged."""
        with self.whole():
            save_weights(self.model, directory)
        self.tokenizer.save_pretrained(directory)

    def save_adapter(self, directory: Path) -> None:
        """Write the adapter alone, as PEFT loads it."""
        with self.whole():
            save_adapter(self.model, directory)

    def save_trained(self, directory: Path) -> None:
        """Write what training changes: the adapter, or else the whole policy as `save` does."""
        if has_adapter(self.model):
            self.save_adapter(directory)
        else:
            self.save(directory)

    def load_trained(self, directory: Path) -> None:
        """Restore what `save_trained` wrote, bit for bit."""
        load = load_adapter if has_adapter(self.model) else load_weights
        with nullcontext() if self.sharding is None else self.sharding.rewritten():
            load(self.model, directory)


def _before(ids: list[int], full: list[int]) -> list[int]:
    """What stands before ``ids`` in ``full``; nothing if they begin with it themselves."""
    starts = range(len(full) - len(ids) + 1)
    opening = full[: next((i for i in starts if full[i : i + len(ids)] == ids), 0)] if ids else []
    return [] if ids[: len(opening)] == opening else opening


class _WithoutAdapter(Policy):
    """The same model with its adapter switched off while it runs: a frozen reference that costs no memory."""

    def activated(self) -> AbstractContextManager[None]:
        """Inside this context the model computes what was loaded."""
        return without_adapter(self.model)

    def response_outputs(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> ResponseOutputs:
        """As `Policy.response_outputs`, of the weights that were loaded."""
        with self.activated():
            return super().response_outputs(prompts, responses)

    def response_hidden(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Tensor:
        """As `Policy.response_hidden`, of the weights that were loaded."""
        with self.activated():
            return super().response_hidden(prompts, responses)
