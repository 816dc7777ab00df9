"""Muon for the matrices of the layers, AdamW for the rest."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyro_ltm.config import SlowConfig
from pyro_ltm.distributed import gathered, share_of
from pyro_ltm.errors import UserError
from pyro_ltm.optimizers.slow.base import LR_SHARE, ForMatrices, hidden_matrices, transposed_matrices
from pyro_ltm.optimizers.slow.joint import Joint
from pyro_ltm.registry import Card

RATES = ("original", "match_rms_adamw")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Muon(ForMatrices):
    """Muon (Jordan et al. 2024; arXiv:2502.16982): each step of a hidden matrix has all singular values near one.

    Hidden matrices are those of `hidden_matrices`: the decoder's layers, and an encoder's. AdamW moves embeddings,
    heads and vectors. `slow.lr` is Muon's rate: about 0.02 to 0.06 with `original`, AdamW's own with
    `match_rms_adamw`. `slow.weight_decay` is that of both.

    Args:
        momentum: decay of the mean of the gradients. nesterov: look ahead along it.
        ns_steps: steps of the Newton-Schulz iteration that makes singular values one; it ends at 0.7 to 1.2.
        ns_dtype: precision of its products; auto: bfloat16 on a GPU, as torch's Muon everywhere, and float32 on a CPU,
            where bfloat16 can be far slower.
        adjust_lr_fn: how the rate depends on a matrix's shape [out, in], as in torch: `original`, times
            sqrt(max(1, out / in)), or `match_rms_adamw`, times 0.2 sqrt(max(out, in)).
        adamw_lr: peak learning rate of AdamW; 0: a sixth of `slow.lr` with `original`, else the same.
    """

    card: ClassVar[Card] = Card(
        summary="Muon for the matrices of the layers, AdamW for embeddings, head and vectors",
        cost="one number kept for each hidden weight; some matrix products a step",
        when="fewer steps to the same loss, with a learning rate found for it",
        reference="arXiv:2502.16982",
    )
    arguments: ClassVar[tuple[str, ...]] = ("adamw_lr",)
    takes_shares: ClassVar[bool] = True
    momentum: float = 0.95
    nesterov: bool = True
    ns_steps: int = 5
    ns_dtype: str = "auto"
    adjust_lr_fn: str = "original"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.momentum < 1 or not 1 <= self.ns_steps < 100:
            raise UserError(
                f"slow_optimizer: momentum = {self.momentum}, ns_steps = {self.ns_steps}: "
                "from 0 to below 1, and 1 to 99"
            )
        for name, value, known in (
            ("ns_dtype", self.ns_dtype, ("auto", *PRECISIONS)),
            ("adjust_lr_fn", self.adjust_lr_fn, RATES),
        ):
            if value not in known:
                raise UserError(f"slow_optimizer: {name} = {value!r}: choose from {', '.join(known)}")

    @property
    def adamw_share(self) -> float:
        """A sixth: rates of 0.06 and 0.01 go together at the preset nano."""
        return 1 / 6 if self.adjust_lr_fn == "original" else 1.0

    def build(self, module: nn.Module, slow: SlowConfig) -> torch.optim.Optimizer:
        """Muon's groups, one for each number of matrices in a parameter, then those of AdamW."""
        hidden = hidden_matrices(module)
        groups = [
            {"params": [p for p, parts in hidden.items() if parts == count], "parts": count, LR_SHARE: 1.0}
            for count in sorted(set(hidden.values()))
        ]
        muon = BatchedMuon(
            groups,
            lr=slow.lr,
            weight_decay=slow.weight_decay,
            momentum=self.momentum,
            nesterov=self.nesterov,
            ns_steps=self.ns_steps,
            adjust_lr_fn=self.adjust_lr_fn,
        )
        muon.dtype, muon.transposed = PRECISIONS.get(self.ns_dtype), transposed_matrices(module)
        return Joint(muon, self.adamw(module, hidden.keys(), slow))


class BatchedMuon(torch.optim.Muon):
    """Torch's Muon, with one product for all matrices of a shape, and none for a step that is not finite.

    With `dtype` bfloat16 it is torch's, to the bit where a batched product rounds as a single one. A group's `parts`
    says how many matrices lie in each parameter, one below the other; each is made orthogonal by itself.

    Attributes:
        dtype: precision of the Newton-Schulz iteration; None: see `Muon.ns_dtype`.
        transposed: parameters that hold matrices [in, out], side by side, and how many each; the others' are [out, in].
            They are no groups of their own: checkpoints number parameters group by group.
    """

    dtype: torch.dtype | None = None
    transposed: Mapping[nn.Parameter, int] = MappingProxyType({})
    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; none if `found_inf`, which torch's GradScaler and `step_where` set, is not zero."""
        loss = None if closure is None else closure()
        found: Tensor | None = getattr(self, "found_inf", None)
        skipped = None if found is None else found > 0
        for group in self.param_groups:
            learning = [p for p in group["params"] if p.grad is not None]
            updates = [self._momentum(p, group["momentum"], group["nesterov"], skipped) for p in learning]
            cuts = [self._cut(p, group) for p in learning]
            wholes = zip(updates, cuts, strict=True)
            pieces = iter(self._orthogonal([part for one, cut in wholes for part in gathered(one).chunk(*cut)], group))
            for p, (count, dim) in zip(learning, cuts, strict=True):
                parts = list(islice(pieces, count))
                rows, columns = parts[0].mT.shape if p in self.transposed else parts[0].shape
                rate = group["lr"] * _ratio(group["adjust_lr_fn"], rows, columns)
                update = share_of(torch.cat(parts, dim), p)
                moved = (p * (1 - group["lr"] * group["weight_decay"])).add_(update, alpha=-rate)
                p.copy_(moved if skipped is None else torch.where(skipped, p, moved))
        return loss

    def _cut(self, p: nn.Parameter, group: dict[str, Any]) -> tuple[int, int]:
        """How many matrices lie in `p`, and along which dimension."""
        return (self.transposed[p], 1) if p in self.transposed else (group.get("parts", 1), 0)

    def _momentum(self, p: nn.Parameter, momentum: float, nesterov: bool, skipped: Tensor | None) -> Tensor:
        """The mean of the gradients of `p`, which is kept, or with `nesterov` what it will be."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        kept: Tensor = state["momentum_buffer"]
        mean = kept.lerp(p.grad, 1 - momentum)
        kept.copy_(mean if skipped is None else torch.where(skipped, kept, mean))
        return p.grad.lerp(mean, momentum) if nesterov else mean

    def _orthogonal(self, matrices: Sequence[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Each of the `matrices` with its singular values near one, those of a shape together."""
        shapes: dict[torch.Size, list[int]] = defaultdict(list)
        for index, matrix in enumerate(matrices):
            shapes[matrix.shape].append(index)
        options = {name: group[name] for name in ("ns_steps", "ns_coefficients", "eps")}
        found = list(matrices)
        for indices in shapes.values():
            stack = torch.stack([matrices[index] for index in indices])
            dtype = self.dtype or (torch.bfloat16 if stack.is_cuda else torch.float32)
            for index, matrix in zip(indices, newton_schulz(stack.to(dtype), **options), strict=True):
                found[index] = matrix
        return found


def newton_schulz(
    matrices: Tensor, *, ns_steps: int, ns_coefficients: tuple[float, float, float], eps: float
) -> Tensor:
    """`matrices` [M, out, in] with singular values near one: a quintic iteration, X <- aX + (bA + cA²)X, A = XXᵀ."""
    a, b, c = ns_coefficients
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    for _ in range(ns_steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _ratio(adjust_lr_fn: str | None, rows: int, columns: int) -> float:
    """A matrix's learning rate as a share of its group's (see `Muon`)."""
    if adjust_lr_fn == "match_rms_adamw":
        return float(0.2 * max(rows, columns) ** 0.5)
    return float(max(1.0, rows / columns) ** 0.5)
