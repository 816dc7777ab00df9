"""log p(x, z) of a batch as a function of its thoughts: what samplers follow and what scores are made of."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_ltm.types import Batch


@dataclass(frozen=True)
class LogJoint:
    """The unnormalized log posterior of each sequence's thoughts, [..., B] for thoughts z [..., B, N, D].

    Args:
        model: a Pyro program `model(batch, state)` with the sites `thoughts` and `tokens`.
    """

    model: nn.Module
    batch: Batch

    def __call__(self, thoughts: Tensor) -> Tensor:
        """[..., B] log p(x, z), in nats."""
        log_likelihood, log_prior = self.parts(thoughts)
        return log_likelihood + log_prior

    def parts(self, thoughts: Tensor) -> tuple[Tensor, Tensor]:
        """[..., B] log p(x | z) and log p(z), in nats; at most one dimension of particles."""
        particles = thoughts.shape[:-3]
        plate = pyro.plate("particles", particles[0], dim=-2) if particles else nullcontext()
        with plate:
            given = poutine.condition(self.model, data={"thoughts": thoughts})
            trace = poutine.trace(given).get_trace(self.batch, None)
        trace.compute_log_prob()
        nodes = trace.nodes
        return nodes["tokens"]["log_prob"], nodes["thoughts"]["log_prob"]

    def width(self) -> Tensor:
        """Standard deviation of each number under the prior, [N, D]; [1, 1] and one where it is not known."""
        prior: Any = getattr(self.model, "prior", None)
        try:
            width: Tensor = torch.ones(1, 1) if prior is None else prior().variance.sqrt()
        except NotImplementedError:
            width = torch.ones(1, 1)
        return width

    def select(self, rows: Tensor) -> LogJoint:
        """The target of the sequences at `rows` (int64 [B'])."""
        return LogJoint(self.model, self.batch.select(rows))
