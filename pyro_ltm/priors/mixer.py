"""A network over thoughts [N, D] that mixes them along both dimensions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_ltm.priors.base import check_range, perceptron


class Mixer(nn.Module):
    """Residual blocks, over the N thoughts and over the D numbers of each in turns (MLP-Mixer, arXiv:2105.01601).

    Each adds nothing at first, so that the network begins as the identity.

    Args:
        thoughts: thought vectors N. dim: width D of each. depth: blocks. hidden: width of their networks.
    """

    def __init__(self, thoughts: int, dim: int, depth: int, hidden: int):
        super().__init__()
        check_range("depth", depth, 1, 64)
        check_range("hidden", hidden, 1, 1 << 14)
        self.blocks = nn.Sequential(*(Block(thoughts, dim, hidden) for _ in range(depth)))

    def forward(self, thoughts: Tensor) -> Tensor:
        """[..., N, D] from thoughts [..., N, D]."""
        mixed: Tensor = self.blocks(thoughts)
        return mixed


class Block(nn.Module):
    """One block of a `Mixer`."""

    def __init__(self, thoughts: int, dim: int, hidden: int):
        super().__init__()
        self.over_thoughts = perceptron(thoughts, hidden, thoughts)
        self.over_width = perceptron(dim, hidden, dim)

    def forward(self, h: Tensor) -> Tensor:
        """[..., N, D] from [..., N, D]."""
        h = h + self.over_thoughts(_normed(h).mT).mT
        mixed: Tensor = h + self.over_width(_normed(h))
        return mixed


def _normed(h: Tensor) -> Tensor:
    """All N D numbers with a mean square of one: their directions and relative sizes stay."""
    return h * torch.rsqrt(h.square().mean((-2, -1), keepdim=True) + 1e-6)
