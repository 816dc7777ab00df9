"""A Normal for each latent dimension by itself."""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution

from pyro_ltm.divergence import normal_of
from pyro_ltm.errors import UserError
from pyro_ltm.guides.base import Guide
from pyro_ltm.noise import Noise, fold
from pyro_ltm.registry import Card
from pyro_ltm.types import Batch, State


class IndependentNormals(Guide, ABC):
    """Base of families of Normal(loc, exp(log_variance / 2)), each latent dimension by itself."""

    has_analytic_kl: ClassVar[bool] = True
    has_kl_by_thought: bool = True
    has_natural_gradient: ClassVar[bool] = True

    def distribution(self, state: State) -> dist.TorchDistribution:
        """Normal(loc, exp(log_variance / 2)) over [N, D]."""
        # Unchecked: one sequence that has run away must not stop the others.
        return dist.Normal(state["loc"], (state["log_variance"] / 2).exp(), validate_args=False).to_event(2)

    def kl_by_thought(self, state: State, prior: Distribution) -> Tensor | None:
        """See `Guide`; None where the prior is not of independent Normals."""
        normal = normal_of(prior)
        if normal is None:
            return None
        loc, scale = normal
        relative = state["log_variance"] - 2 * scale.log()
        return 0.5 * (((state["loc"] - loc) / scale).square() + relative.exp() - 1 - relative).sum(-1)

    def natural_gradient(self, state: State, gradients: State) -> State:
        """The Fisher information is 1 / variance for a mean and 1/2 for a log variance."""
        return {"loc": state["log_variance"].exp() * gradients["loc"], "log_variance": 2 * gradients["log_variance"]}


class MeanField(IndependentNormals):
    """Independent Normals, the paper's family (arXiv:2502.01567): the default, and the cheapest that has a width.

    Starts at the prior. Starting it narrow (the reference has `init_log_variance = -5`, `init_noise = 0.1`) leaves
    every dimension some nats that a few fast steps cannot take back.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        init_loc: standard deviation of the first means.
        init_log_variance: the first log variances.
        init_noise: standard deviation of the first log variances around that.
        seed: of the two draws above, keyed by each sequence's id.
    """

    card: ClassVar[Card] = Card(
        summary="a Normal for each latent dimension by itself: the paper's family",
        cost="2 N D numbers a sequence",
        when="the default",
        reference="arXiv:2502.01567",
    )
    is_recorded: ClassVar[bool] = True

    def __init__(
        self,
        thoughts: int,
        dim: int,
        init_loc: float = 0.0,
        init_log_variance: float = 0.0,
        init_noise: float = 0.0,
        seed: int = 0,
    ):
        super().__init__(thoughts, dim)
        if init_loc < 0 or init_noise < 0 or not -20 <= init_log_variance <= 20:
            raise UserError(
                f"guide: init_loc = {init_loc}, init_noise = {init_noise}, init_log_variance = {init_log_variance}: "
                "the first two are at least 0, the last lies from -20 to 20"
            )
        self.init_loc = init_loc
        self.init_log_variance = init_log_variance
        self.init_noise = init_noise
        self.seed = seed

    def init(self, batch: Batch) -> State:
        """`loc` and `log_variance`, each [B, N, D]."""
        shape = torch.Size([batch.size, self.thoughts, self.dim])
        loc = torch.zeros(shape, device=batch.device)
        log_variance = torch.full_like(loc, self.init_log_variance)
        if self.init_loc or self.init_noise:
            noise = Noise(batch.ids, device=batch.device, seed=fold(self.seed, "init"))
            loc = loc + self.init_loc * noise.normal(shape, event_dims=2)
            log_variance = log_variance + self.init_noise * noise.normal(shape, event_dims=2)
        return {"loc": loc, "log_variance": log_variance}
