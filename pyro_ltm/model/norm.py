"""RMSNorm whose backward pass, where its weight is held still, is a few passes over memory instead of a dozen."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_ltm.model.kernels.attention import chooses_its_kernel


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv:1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] to [..., D]."""
        if self.weight.requires_grad or x.dtype == torch.bfloat16 or not chooses_its_kernel():
            return super().forward(x)
        normed: Tensor = _HeldStill.apply(x, self.weight, self.eps)
        return normed


class _HeldStill(torch.autograd.Function):
    """With s = 1 / sqrt(mean(x^2) + eps) and g the gradient times the weight: dx = s g - s^3 x mean(g x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = x.shape[-1]
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(size).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        ctx.eps = eps
        return (x * scale).mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated again
            normed = F.rms_norm(x, weight.shape, weight, ctx.eps)
            return *torch.autograd.grad(normed, x, grad, create_graph=True), None, None
        grad = grad * weight
        along = torch.linalg.vecdot(grad, x).unsqueeze(-1)
        return grad.mul_(scale).addcmul_(x, along.mul_(scale**3).div_(-x.shape[-1])), None, None
