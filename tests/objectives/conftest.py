"""Double precision, and a place beside the posterior of a model in which everything is known."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pytest
import torch
from helpers.stand_ins import LinearGaussian

from pyro_ltm.guides import MeanField
from pyro_ltm.types import Batch, State


@pytest.fixture(autouse=True)
def _double_precision():
    torch.set_default_dtype(torch.float64)
    yield
    assert not dict(pyro.get_param_store())


@dataclass
class Place:
    """A mean-field q some way off the posterior; `copies` of one sequence are replicates of one estimate."""

    model: LinearGaussian
    guide: MeanField
    batch: Batch
    state: State

    @property
    def arguments(self):
        return self.model, self.guide, self.batch, self.state

    @property
    def leaves(self):
        return list(self.state.values())

    @property
    def q(self):
        return torch.distributions.Normal(self.state["loc"], (self.state["log_variance"] / 2).exp())

    def value(self, objective, seed=0):
        """[B], always on the same draws for one seed."""
        pyro.set_rng_seed(seed)
        return objective.value(objective.terms(*self.arguments))

    def gradients(self, objective, seed=0, **options):
        """Of the loss to each leaf, on the same draws for one seed."""
        pyro.set_rng_seed(seed)
        loss = objective.differentiable_loss(*self.arguments)
        return torch.autograd.grad(loss, self.leaves, **options)

    def decoder_gradients(self, objective, seed=0):
        """Of the decoder's loss to the model's parameters, on the same draws for one seed."""
        pyro.set_rng_seed(seed)
        loss = objective.decoder_loss(objective.terms(*self.arguments)).sum()
        return torch.autograd.grad(loss, list(self.model.parameters()))


@pytest.fixture
def place():
    """place(size, shift, widen): q's mean `shift` off, its standard deviation exp(widen / 2) times the posterior's."""

    def make(size=3, *, shift=0.3, widen=0.2, copies=False, model=None):
        model = model or LinearGaussian()
        batch = model.data(size, copies=copies)
        exact = model.posterior(batch)
        state = {"loc": exact.mean + shift, "log_variance": exact.variance.log() + widen}
        state = {name: value.clone().requires_grad_() for name, value in state.items()}
        return Place(model, MeanField(model.thoughts, model.dim), batch, state)

    return make
