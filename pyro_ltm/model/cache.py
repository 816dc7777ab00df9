"""Cache of generation: keys and values of the tokens read so far, within the decoder's window.

Shapes: B sequences, P tokens read at first, H heads, W window, d width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Cache:
    """Projected thoughts, and the last W keys and values of each layer in a ring.

    Shapes:
        thoughts: per layer, keys and outputs (`Attention.keys_outputs`), or None without thoughts.
        keys, values: per layer, [B, H, W, d]; token t lies in slot t mod W. Keys are rotated at their absolute
            position, so their order in the ring does not matter.
        position: tokens read so far.
    """

    thoughts: list[tuple[Tensor, Tensor] | None]
    position: int
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def begin(self, keys: Tensor, values: Tensor, window: int) -> None:
        """Takes in the next layer's of all tokens read at first, [B, H, P, d]."""
        self.keys.append(_ring(keys, window))
        self.values.append(_ring(values, window))

    def add(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Takes in one token's [B, H, 1, d], and gives what it sees, itself among it: [B, H, min(t + 1, W), d]."""
        keys, values = self.keys[layer], self.values[layer]
        slot, seen = self.position % keys.shape[2], min(self.position + 1, keys.shape[2])
        keys[:, :, slot], values[:, :, slot] = key[:, :, 0], value[:, :, 0]
        return keys[:, :, :seen], values[:, :, :seen]


def _ring(x: Tensor, window: int) -> Tensor:
    """The last W of P keys or values [B, H, P, d], each in slot (its position mod W)."""
    length = x.shape[2]
    ring = x.new_zeros(*x.shape[:2], window, x.shape[3])
    last = torch.arange(max(0, length - window), length, device=x.device)
    ring[:, :, last % window] = x[:, :, last]
    return ring
