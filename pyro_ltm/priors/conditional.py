"""A prior of the thoughts of a text whose beginning is known."""

from __future__ import annotations

from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_ltm.priors.base import Prior, bounded, check_range, perceptron
from pyro_ltm.registry import Card


class Conditional(Prior):
    """N(0, I) over the thoughts of a text, and p(z | prompt) over those of a text that begins with a prompt.

    Independent Normals whose means and widths a network reads off the mean embedding of the prompt's tokens. The slow
    steps teach it: of each sequence a beginning of random length is the prompt, and -log p(z | prompt) of a draw z from
    the posterior of the whole sequence is its loss. So it plans: it says what thoughts whole texts have that begin so,
    where a posterior fitted to the prompt says what the prompt itself is evidence of. `generate` draws from it where
    there is a prompt. Bounds are those of N(0, I), for a text's own beginning is part of it.

    Args:
        thoughts: thought vectors N. dim: width D of each. hidden: width of the network.
        decoder_dim: width of the prompt; None: `dim`.
    """

    card: ClassVar[Card] = Card(
        summary="N(0, I), and beside it Normals given the prompt, for generation that plans",
        cost="a small network; writing after a prompt takes no fit",
        when="continuations of prompts",
        reference="arXiv:1703.10960",
    )
    arguments: ClassVar[tuple[str, ...]] = ("hidden",)
    has_analytic_kl: ClassVar[bool] = True
    reads_prompt: ClassVar[bool] = True

    def __init__(self, thoughts: int, dim: int, hidden: int = 256, decoder_dim: int | None = None):
        super().__init__(thoughts, dim)
        check_range("hidden", hidden, 1, 1 << 14)
        self.network = perceptron(decoder_dim or dim, hidden, 2 * thoughts * dim)
        self.loc: Tensor
        self.register_buffer("loc", torch.zeros(thoughts, dim), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """The prior of one sequence: event shape [N, D]."""
        return dist.Normal(self.loc, torch.ones_like(self.loc), validate_args=False).to_event(2)

    def given(self, prompt: Tensor) -> dist.TorchDistribution:
        """See `Prior`."""
        scaled = prompt * torch.rsqrt(prompt.square().mean(-1, keepdim=True) + 1e-12)
        loc, log_scale = self.network(scaled).unflatten(-1, (2, self.thoughts, self.dim)).unbind(-3)
        return dist.Normal(loc, bounded(log_scale).exp(), validate_args=False).to_event(2)
