"""SOAP for the matrices of the layers, AdamW for the rest."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyro_ltm.config import SlowConfig
from pyro_ltm.errors import UserError
from pyro_ltm.optimizers.slow.base import LR_SHARE, ForMatrices, hidden_matrices
from pyro_ltm.optimizers.slow.joint import Joint
from pyro_ltm.registry import Card


@dataclass(frozen=True, kw_only=True)
class Soap(ForMatrices):
    """SOAP (arXiv:2409.11321) of the package pytorch-optimizer: Adam in the eigenbasis of Shampoo's preconditioner.

    It moves the matrices of `hidden_matrices`, those that lie fused in one parameter as one, but not in its first step,
    from which it takes the first basis. It cannot skip a step on the device that is not finite: each step waits for the
    gradients' norm.

    Args:
        beta1, beta2: decay of the mean and of the square of the gradients, and of the preconditioner.
        precondition_frequency: steps between changes of basis.
        max_precondition_dim: a side of a matrix that is longer has no basis of its own.
        adamw_lr: peak learning rate of AdamW; 0: `slow.lr`.
    """

    card: ClassVar[Card] = Card(
        summary="SOAP for the matrices of the layers, AdamW for embeddings, head and vectors",
        cost="numbers kept for each hidden weight: two, and twice the squares of the sides; decompositions",
        when="comparisons with Shampoo's kind; small matrices, whose decompositions are cheap",
        reference="arXiv:2409.11321",
    )
    arguments: ClassVar[tuple[str, ...]] = ("precondition_frequency",)
    beta1: float = 0.95
    beta2: float = 0.95
    precondition_frequency: int = 10
    max_precondition_dim: int = 10000

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise UserError(f"slow_optimizer: beta1 = {self.beta1}, beta2 = {self.beta2}: from 0 to below 1")
        if self.precondition_frequency < 1 or self.max_precondition_dim < 1:
            raise UserError(
                f"slow_optimizer: precondition_frequency = {self.precondition_frequency}, "
                f"max_precondition_dim = {self.max_precondition_dim}: at least 1"
            )
        if find_spec("pytorch_optimizer") is None:
            raise UserError("slow_optimizer 'soap' needs another package: pip install -e '.[soap]' in the clone")

    @property
    def adamw_share(self) -> float:
        """SOAP's rates are AdamW's."""
        return 1.0

    def build(self, module: nn.Module, slow: SlowConfig) -> torch.optim.Optimizer:
        """SOAP's group, then those of AdamW."""
        from pytorch_optimizer.optimizer.soap import SOAP  # seconds to import

        hidden = hidden_matrices(module)
        soap = SOAP(
            [{"params": list(hidden), LR_SHARE: 1.0}],
            lr=slow.lr,
            betas=(self.beta1, self.beta2),
            weight_decay=slow.weight_decay,
            precondition_frequency=self.precondition_frequency,
            max_precondition_dim=self.max_precondition_dim,
        )
        soap.register_step_post_hook(_contiguous)
        return Joint(soap, self.adamw(module, hidden.keys(), slow))


def _contiguous(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Lays bases out as a checkpoint does: sums in another order would not be the same to the bit."""
    for state in optimizer.state.values():
        if "Q" in state:
            state["Q"] = [basis.contiguous() if isinstance(basis, Tensor) else basis for basis in state["Q"]]
