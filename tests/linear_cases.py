"""Small batches for the tests of objectives from hidden states, and what the full logits say about them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cvxrl.objectives.batch import DenseAdvantages, TokenBatch
from cvxrl.objectives.linear import Frozen, HiddenBatch, LinearHead, LowRank
from cvxrl.objectives.registry import compute
from cvxrl.recipe.base import section_classes
from cvxrl.recipe.lco import LcoKldSpec, LcoLchSpec, LcoMseSpec, LcoSpec, TopKFillSupport, TopKSupport
from cvxrl.recipe.objective import CallableObjective, ObjectiveSpec

LENGTHS = (3, 2, 4, 1)
NUM_TOKENS = sum(LENGTHS)
VOCAB, WIDTH, RANK = 11, 5, 2

OTHERS: list[ObjectiveSpec] = [
    kind() for kind in section_classes(ObjectiveSpec) if not issubclass(kind, LcoSpec | CallableObjective)
]
LCO: list[ObjectiveSpec] = [
    kind(beta=0.7, negative_beta_scale=scale, target=target, tilt=tilt, shift=shift)
    for kind in (LcoKldSpec, LcoMseSpec, LcoLchSpec)
    for scale, target, tilt, shift in (
        (3.0, "frozen", "exponential", "none"),
        (1.0, "moving", "exponential", "none"),
        (1.0, "frozen", "linear", "none"),
        (1.0, "moving", "linear", "none"),
        (1.0, "frozen", "exponential", "drift-free"),
        (1.0, "frozen", "linear", "drift-free"),
    )
]
SUPPORTS: list[ObjectiveSpec] = [
    LcoKldSpec(support=TopKSupport(k=3)),
    LcoKldSpec(support=TopKSupport(k=3), target="moving"),
    LcoKldSpec(support=TopKFillSupport(k=3)),
]
EVERY = [*LCO, *SUPPORTS, *OTHERS]


def label(spec: ObjectiveSpec) -> str:
    """Test id: the kind and whatever differs from its defaults."""
    changed = spec.model_dump(exclude_defaults=True, exclude={"kind", "beta", "support"})
    support = [spec.support.kind] if isinstance(spec, LcoKldSpec) and spec.support.kind != "exact" else []
    return "-".join([spec.kind, *map(str, changed.values()), *support])


@dataclass(frozen=True)
class Leaves:
    """The tensors that gradients are compared for."""

    hidden_NH: Tensor
    weight_VH: Tensor
    bias_V: Tensor
    down_RH: Tensor
    up_VR: Tensor

    @property
    def all(self) -> list[Tensor]:
        return list(vars(self).values())

    def head(self, **constants: float) -> LinearHead:
        low_rank = (LowRank(self.down_RH, self.up_VR, scaling=0.5),)
        return LinearHead(self.weight_VH, self.bias_V, low_rank=low_rank, **constants)  # type: ignore[arg-type]

    def logits(self, *, scale: float = 1.0, softcap: float | None = None, temperature: float = 1.0) -> Tensor:
        """All logits at once, written independently of the package."""
        matrix_VH = self.weight_VH + 0.5 * self.up_VR @ self.down_RH
        logits_NV = scale * (torch.einsum("nh,vh->nv", self.hidden_NH, matrix_VH) + self.bias_V)
        if softcap is not None:
            logits_NV = softcap * torch.tanh(logits_NV / softcap)
        return logits_NV / temperature


HEADS = {
    "plain": {},
    "scaled": {"scale": 0.3, "temperature": 0.8},
    "softcapped": {"scale": 1.7, "softcap": 2.0, "temperature": 1.3},
}


def leaves(seed: int, spread: float = 1.0, vocab: int = VOCAB) -> Leaves:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return (spread * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()

    return Leaves(
        normal(NUM_TOKENS, WIDTH), normal(vocab, WIDTH), normal(vocab), normal(RANK, WIDTH), normal(vocab, RANK)
    )


def cast(leaf: Leaves, dtype: torch.dtype) -> Leaves:
    """The same numbers as leaves of another type."""
    return Leaves(*(t.detach().to(dtype).requires_grad_() for t in leaf.all))


def batch_of(
    now: Leaves, old: Leaves, spec: ObjectiveSpec, *, on_policy: bool = False, dense: bool = False, **head: float
) -> HiddenBatch:
    """Two prompts with two responses each; nothing is given that the objective could do without."""
    generator = torch.Generator().manual_seed(7)
    dtype, vocab = now.hidden_NH.dtype, now.weight_VH.shape[0]
    actions_N = torch.randint(vocab, (NUM_TOKENS,), generator=generator)
    sequence_N = torch.arange(4).repeat_interleave(torch.tensor(LENGTHS))
    advantages_S = torch.randn(4, generator=generator, dtype=torch.float64).to(dtype)
    group_SG = advantages_S.view(2, 2).repeat_interleave(2, dim=0)
    ids_NK = torch.stack([torch.randperm(vocab, generator=generator)[:3] for _ in range(NUM_TOKENS)])
    values_NK = torch.randn(NUM_TOKENS, 3, generator=generator, dtype=torch.float64).to(dtype)
    with torch.no_grad():
        old_NV = torch.log_softmax(cast(old, torch.float64).logits(**head), dim=-1)
        old_logprobs_N = old_NV.gather(-1, actions_N.unsqueeze(-1)).squeeze(-1).to(dtype)
    return HiddenBatch(
        now.hidden_NH,
        now.head(**head),
        actions_N=actions_N,
        advantages_N=advantages_S[sequence_N],
        frozen=None if on_policy else Frozen(old.hidden_NH, old.head(**head)),
        on_policy=on_policy,
        old_logprobs_N=None if on_policy else old_logprobs_N,
        reference_logprobs_N=old_logprobs_N - 0.1 * torch.arange(NUM_TOKENS),
        group_advantages_NG=group_SG[sequence_N],
        dense=DenseAdvantages(ids_NK, values_NK) if dense else None,
        sequence_N=sequence_N,
        group_S=torch.tensor([0, 0, 1, 1]),
    )


def full_loss(batch: HiddenBatch, now: Leaves, old: Leaves, spec: ObjectiveSpec, **head: float) -> Tensor:
    """Token losses of the objective on full logits, [N]."""
    logits_NV = now.logits(**head)
    old_NV = logits_NV.detach() if batch.on_policy else old.logits(**head).detach()
    old_logprobs_N = torch.log_softmax(old_NV, -1).gather(-1, batch.actions_N.unsqueeze(-1)).squeeze(-1)
    tokens = TokenBatch(
        logits_NV,
        actions_N=batch.actions_N,
        advantages_N=batch.advantages_N,
        old_logits_NV=old_NV,
        old_logprobs_N=old_logprobs_N,
        reference_logprobs_N=batch.reference_logprobs_N,
        group_advantages_NG=batch.group_advantages_NG,
        dense=batch.dense,
        sequence_N=batch.sequence_N,
        group_S=batch.group_S,
    )
    return compute(tokens, spec).loss_N


def weights() -> Tensor:
    """Different weights, as `sequence-mean` gives."""
    return (1.0 / torch.tensor(LENGTHS, dtype=torch.float64)).repeat_interleave(torch.tensor(LENGTHS)) / 4


def without_low_rank(batch: HiddenBatch) -> HiddenBatch:
    """The adapter reads hidden states before the sweep, in its own precision; here it is left out."""
    frozen = batch.frozen
    if frozen is not None:
        frozen = replace(frozen, head=replace(frozen.head, low_rank=()))
    return replace(batch, head=replace(batch.head, low_rank=()), frozen=frozen)
