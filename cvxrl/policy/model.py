"""A causal language model as a policy over its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Configuration keys by which some families change the logits after the output matrix. For those the model's own
# forward computes the logits of every position; others get logits only where a response token was sampled.
_LOGIT_POSTPROCESSING = ("final_logit_softcapping", "logit_scale", "logits_scaling", "output_multiplier_scale")


@dataclass(frozen=True)
class Policy:
    """A transformers causal LM with its tokenizer.

    Attributes:
        model: the network; its logits divided by the sampling temperature define the policy.
        tokenizer: has a padding token.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

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

    def decode(self, responses: Sequence[Sequence[int]]) -> list[str]:
        """Text of each response, without special tokens."""
        return list(self.tokenizer.batch_decode([list(ids) for ids in responses], skip_special_tokens=True))

    def response_logits(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> Tensor:
        """Raw logits in fp32 at every response token, sequence after sequence: [sum of response lengths, V].

        Sequences are right-padded; padding cannot reach a response token through causal attention.
        """
        rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.pad_id, dtype=torch.long)
        mask = torch.zeros((len(rows), width), dtype=torch.long)
        before = torch.zeros((len(rows), width), dtype=torch.bool)  # positions whose output predicts a response token
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            ids[i, : len(rows[i])] = torch.tensor(rows[i])
            mask[i, : len(rows[i])] = 1
            before[i, len(prompt) - 1 : len(prompt) - 1 + len(response)] = True
        ids, mask, before = (tensor.to(self.device) for tensor in (ids, mask, before))
        if any(getattr(self.model.config, key, None) for key in _LOGIT_POSTPROCESSING):
            logits: Tensor = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[before]
        else:
            hidden = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            logits = self.model.get_output_embeddings()(hidden[before])
        return logits.float()

    def save(self, directory: Path) -> None:
        """Write a plain Hugging Face directory (safetensors) that `from_pretrained` loads."""
        self.model.save_pretrained(directory)
        self.tokenizer.save_pretrained(directory)
