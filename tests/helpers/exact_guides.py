"""Guides and a model for comparisons: what they come to is known beforehand."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from helpers.stand_ins import LinearGaussian
from torch import nn

from pyro_ltm.guides import Guide, MeanField


class WithPrior(LinearGaussian):
    """The same model, with a prior that a KL in closed form can be taken to."""

    def prior(self):
        return dist.Normal(torch.zeros(self.thoughts, self.dim), 1.0).to_event(2)


class Exact(Guide):
    """The posterior itself, without any fit."""

    has_analytic_kl: ClassVar[bool] = True

    def __init__(self, model):
        super().__init__(model.thoughts, model.dim)
        self.known = [model]  # in a list: no module of ours

    def init(self, batch):
        posterior = self.known[0].posterior(batch)
        return {"loc": posterior.mean.clone(), "scale": posterior.stddev.clone()}

    def distribution(self, state):
        return dist.Normal(state["loc"], state["scale"]).to_event(2)


class Linear(Guide):
    """An encoder that is linear in the targets, as the exact posterior is; its weights are shared."""

    learning = "amortized"

    def __init__(self, model):
        super().__init__(model.thoughts, model.dim)
        size = model.thoughts * model.dim
        self.weights = nn.Parameter(torch.zeros(size, len(model.offset)))
        self.log_scale = nn.Parameter(torch.zeros(size))
        self.register_buffer("offset", model.offset.detach().clone())

    def init(self, batch):
        shape = (self.thoughts, self.dim)
        loc = ((batch.targets - self.offset) @ self.weights.T).unflatten(-1, shape)
        return {"loc": loc, "scale": self.log_scale.exp().view(shape).expand_as(loc)}

    def distribution(self, state):
        return dist.Normal(state["loc"], state["scale"]).to_event(2)


class Wild(MeanField):
    """A posterior that has run away."""

    def distribution(self, state):
        return dist.Normal(state["loc"] * math.nan, state["log_variance"].exp()).to_event(2)


def pieces(batch, *sizes):
    return [batch.select(rows) for rows in torch.arange(batch.size).split(list(sizes))]
