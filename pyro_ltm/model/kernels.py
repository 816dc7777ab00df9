"""Torch's fused attention kernels, and whether they are ours to choose."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FUSED = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
FUSED_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def chooses_its_kernel() -> bool:
    """Whether the kernel, and what is kept for the backward pass, is ours to choose.

    The compiler chooses by itself. And without the fused kernels somebody differentiates twice, under a choice of
    kernel (`sdpa_kernel`) that is over by the time of the backward pass: computed again, it would keep other tensors.
    """
    return not torch.compiler.is_compiling() and torch.backends.cuda.flash_sdp_enabled()


def attend(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
    """Attention in the precision of `q`, `k` and `v`; autocast would round them."""
    with torch.autocast(q.device.type, enabled=False):
        return F.scaled_dot_product_attention(q, k, v, **options)


def readable(x: Tensor) -> Tensor:
    """`x` as the fused kernel for CPUs reads it: it takes the numbers of a row to lie side by side, unasked."""
    return x if x.stride(-1) == 1 else x.contiguous()
