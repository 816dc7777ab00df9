"""The gate of SwiGLU, where both of its inputs are halves of one product."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_ltm.model.kernels.attention import chooses_its_kernel


def gated(x: Tensor) -> Tensor:
    """silu(gate) * up, [..., F], of `x` [..., 2F], which holds both."""
    if not chooses_its_kernel():
        return _plainly(x)
    opened: Tensor = _Gated.apply(x)
    return opened


def _plainly(x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up


class _Gated(torch.autograd.Function):
    """The gradient is written in one piece: to join its halves would copy both."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, dim=-1)
        opened = F.silu(gate)
        ctx.save_for_backward(x, opened)
        return opened * up

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, opened = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            return torch.autograd.grad(_plainly(x), x, grad, create_graph=True)[0]
        gate, up = x.chunk(2, dim=-1)
        both = torch.empty_like(x)
        to_gate, to_up = both.chunk(2, dim=-1)
        torch.mul(grad, opened, out=to_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=to_gate)
        return both
