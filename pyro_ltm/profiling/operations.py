"""Floating-point operations of what runs: those of its matrix products and attention, as torch executes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


def count_operations(work: Callable[[], object]) -> int:
    """Multiplications and additions of all matrix products and attention while `work` runs, forward and back.

    Elementwise work (norms, softmaxes, exponentials, AdamW's update) counts as nothing; the orthogonalization of Muon
    is made of products, and counts. Compiled code hides its products: count code that is not compiled.

    The formulas are those of `torch.utils.flop_counter`, whose own counter hooks into modules in a way that
    `torch.autograd.grad` does not allow.
    """
    with _Counter() as counter:
        work()
    return counter.total


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in _ON_CPU:
            self.total += _ON_CPU[packet](*args)
        elif packet in flop_registry:
            self.total += flop_registry[packet](*args, **(kwargs or {}), out_val=result)
        return result


def _attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_back(
    gradient: torch.Tensor, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))


def _packed_product(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> int:
    """Of a weight [outputs, inputs] in the processor's own order (`model.kernels.packed`)."""
    return 2 * x.numel() * weight.shape[0]


_aten = torch.ops.aten
_ON_CPU: dict[Any, Callable[..., int]] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_back,
}
"""On a processor: attention, and products with packed weights, for which torch registers no formula."""
if _packed := getattr(torch.ops.mkldnn, "_linear_pointwise", None):  # not in every build of torch
    _ON_CPU[_packed] = _packed_product
