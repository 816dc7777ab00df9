"""Base class of slow optimizers, and what several of them share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Set
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

import torch
from torch import nn

from pyro_ltm.config import SlowConfig
from pyro_ltm.errors import UserError
from pyro_ltm.registry import Card, Member

LR_SHARE = "lr_share"
"""Key of a parameter group: its learning rate as a share of the scheduled one; 1 where a group has none."""


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives each group of parameters its share of the scheduled rate."""
    for group in optimizer.param_groups:
        group["lr"] = group.get(LR_SHARE, 1.0) * lr


class SlowOptimizer(Member, ABC):
    """The options of an optimizer of decoder and guide: `build(module, slow)` makes the torch optimizer.

    The trainer treats every one alike: it clips the gradients of all `param_groups` together, sets each group's rate
    (`set_learning_rate`), and saves and restores the whole state: tensors, lists of tensors and numbers.

    Attributes:
        card: one line each on what it is and when to use it.
        takes_shares: it moves parameters of which this process keeps a share (DTensor) as it would the whole ones.
    """

    has_fields: ClassVar[bool] = True
    card: ClassVar[Card]
    arguments: ClassVar[tuple[str, ...]] = ()
    takes_shares: ClassVar[bool] = False

    @abstractmethod
    def build(self, module: nn.Module, slow: SlowConfig) -> torch.optim.Optimizer:
        """A new optimizer of all parameters of `module`, each in one group, at the peak learning rate `slow.lr`."""

    def decaying(self, slow: SlowConfig) -> dict[str, float]:
        """Peak learning rates by which weights decay, by their settings; none where it has no such decay."""
        return {}


@dataclass(frozen=True, kw_only=True)
class ForMatrices(SlowOptimizer):
    """Base of optimizers for hidden matrices, beside which AdamW moves all else.

    Args:
        adamw_lr: peak learning rate of AdamW; 0: a share of `slow.lr` (`adamw_share`).
    """

    adamw_lr: float = 0.0

    def __post_init__(self) -> None:
        if not self.adamw_lr >= 0:
            raise UserError(f"slow_optimizer: adamw_lr = {self.adamw_lr}: at least 0")

    @property
    @abstractmethod
    def adamw_share(self) -> float:
        """AdamW's learning rate as a share of `slow.lr`, where `adamw_lr` is 0."""

    def decaying(self, slow: SlowConfig) -> dict[str, float]:
        """That of the matrices, and AdamW's where it is given."""
        return {"slow.lr": slow.lr} | ({"slow_optimizer.adamw_lr": self.adamw_lr} if self.adamw_lr else {})

    def adamw(self, module: nn.Module, hidden: Set[nn.Parameter], slow: SlowConfig) -> torch.optim.AdamW:
        """AdamW over all parameters of `module` but the `hidden` ones, at its own learning rate."""
        given = bool(self.adamw_lr and slow.lr)
        return adamw(module, slow, self.adamw_lr / slow.lr if given else self.adamw_share, without=hidden)


def adamw(
    module: nn.Module, slow: SlowConfig, lr_share: float = 1.0, *, without: Set[nn.Parameter] = frozenset()
) -> torch.optim.AdamW:
    """Torch's AdamW over what learns: matrices, which decay, then vectors, which do not.

    Nor do a prior's own parameters: where thoughts lie is no weight that should be small.
    """
    learning = [p for p in module.parameters() if p.requires_grad and p not in without]
    places = {p for part in module.modules() if not getattr(part, "decays", True) for p in part.parameters(False)}
    # In this order whatever decays: checkpoints number parameters.
    ordered = [*(p for p in learning if p.dim() >= 2), *(p for p in learning if p.dim() < 2)]
    groups = [
        {"params": list(members), "weight_decay": slow.weight_decay * decays, LR_SHARE: lr_share}
        for decays, members in groupby(ordered, key=lambda p: p.dim() >= 2 and p not in places)
    ]
    # Torch takes no empty list of groups, but an empty group: all may be hidden matrices.
    return torch.optim.AdamW(
        groups or [{"params": []}], lr=lr_share * slow.lr, betas=(slow.beta1, slow.beta2), fused=True
    )


def hidden_matrices(module: nn.Module) -> dict[nn.Parameter, int]:
    """The matrices [out, in] of stacks of layers, with how many lie fused in each, one below the other.

    For those that are stored as [in, out], and lie fused side by side, see `transposed_matrices`.

    Stacks are what an `nn.ModuleList` holds: the layers of the decoder and of an encoder, the couplings of a flow.
    Embeddings, positions, queries and heads are outside of them, or an `nn.Embedding`. Queries, keys and values of an
    `nn.MultiheadAttention` are three matrices in one parameter.
    """
    found: dict[nn.Parameter, int] = {}
    for stack in module.modules():
        if isinstance(stack, nn.ModuleList):
            for part in stack.modules():
                for name, parameter in part.named_parameters(recurse=False):
                    if parameter.dim() == 2 and parameter.requires_grad and not isinstance(part, nn.Embedding):
                        found[parameter] = 3 if name == "in_proj_weight" else 1
    return found


def transposed_matrices(module: nn.Module) -> dict[nn.Parameter, int]:
    """Those that are stored as [in, out], with how many lie fused in each, side by side.

    They are the weights of transformers' `Conv1D`, of which GPT-2 is made. Its `c_attn` holds queries, keys and values,
    or in cross-attention keys and values, each [in, in].
    """
    found: dict[nn.Parameter, int] = {}
    for name, part in module.named_modules():
        if type(part).__name__ == "Conv1D":
            weight = part.get_parameter("weight")
            rows, columns = weight.shape
            found[weight] = columns // rows if name.split(".")[-1] == "c_attn" and columns % rows == 0 else 1
    return found
