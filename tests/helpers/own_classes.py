"""Parts of one's own, as a user writes them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro.distributions as dist
import torch

from pyro_ltm.guides import Guide
from pyro_ltm.objectives import Objective
from pyro_ltm.optimizers import SGD
from pyro_ltm.optimizers.slow import SlowOptimizer
from pyro_ltm.priors import Prior


class Isotropic(Guide):
    """A Normal with one width for all dimensions of a thought."""

    has_analytic_kl = True
    arguments = ("width",)

    def __init__(self, *args, width: float = 1.0, **more):
        super().__init__(*args, **more)
        self.width = width

    def init(self, batch):
        mean = torch.zeros(batch.size, self.thoughts, self.dim, device=batch.device)
        return {"mean": mean, "log_width": mean[..., :1] + math.log(self.width)}

    def distribution(self, state):
        return dist.Normal(state["mean"], state["log_width"].exp().expand_as(state["mean"])).to_event(2)


class Half(Objective):
    """Renyi's bound of order 1/2."""

    def value(self, terms):
        return 2 * (self.log_weight(terms) / 2).logsumexp(0) - 2 * math.log(self.num_particles)


class Plain(SGD):
    """Gradient descent."""


@dataclass(frozen=True, kw_only=True)
class NAdam(SlowOptimizer):
    """Adam with Nesterov momentum."""

    momentum_decay: float = 0.004

    def build(self, module, slow):
        return torch.optim.NAdam(module.parameters(), lr=slow.lr, momentum_decay=self.momentum_decay)


class Wide(Prior):
    """A Normal of one width, which it learns."""

    def __init__(self, thoughts, dim, width: float = 1.5):
        super().__init__(thoughts, dim)
        self.log_width = torch.nn.Parameter(torch.full((thoughts, dim), math.log(width)))

    def forward(self):
        return dist.Normal(torch.zeros_like(self.log_width), self.log_width.exp()).to_event(2)
