"""Base class of priors over the thoughts of a sequence, and of the densities that networks of theirs make."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import TransformedDistribution, constraints

from pyro_ltm.errors import UserError
from pyro_ltm.noise import Normals, rsample_from
from pyro_ltm.registry import Card, Member


class Prior(Member, nn.Module):
    """A distribution of one sequence's thoughts. What it learns are its parameters: the slow optimizer moves them.

    It starts at N(0, I), or near it, and AdamW moves all of it, whatever moves the decoder: its networks lie in no
    `nn.ModuleList`, which the slow optimizers of matrices take for a stack of layers.

    Args:
        thoughts: thought vectors N; 0 is allowed, and then the event is empty and has probability one.
        dim: width D of each.

    Attributes:
        card: what `pyro-ltm priors` says of it.
        arguments: its options that may follow its name, as in `mixture:16`.
        has_analytic_kl: the KL of a Gaussian guide to it has a closed form registered with torch, as to every prior of
            independent Normals; for a pair of guide and prior it is looked for.
        has_exact_density: False where `log_prob` is an estimate whose exponential has the density as its mean: no
            figure is lower on average than with the density itself, but what moves along its slope cannot follow it.
        reads_prompt: `given` is there, and `generate` draws from it where there is a prompt.
        decays: whether weight decay takes from its own parameters, as it does from those of its networks.
        is_recorded: asking for its density, the host waits for no value of the device (see `Guide`).
    """

    card: ClassVar[Card]
    arguments: ClassVar[tuple[str, ...]] = ()
    has_analytic_kl: ClassVar[bool] = False
    has_exact_density: ClassVar[bool] = True
    reads_prompt: ClassVar[bool] = False
    decays: ClassVar[bool] = False
    is_recorded: ClassVar[bool] = True

    def __init__(self, thoughts: int, dim: int):
        super().__init__()
        self.thoughts = thoughts
        self.dim = dim

    # Without ABC as a base: Pyro makes modules into its own kind, which another metaclass than theirs does not allow.
    @abstractmethod
    def forward(self) -> dist.TorchDistribution:
        """The prior of one sequence: no batch shape, event shape [N, D]."""
        raise NotImplementedError(f"{type(self).__name__}.forward")

    def given(self, prompt: Tensor) -> dist.TorchDistribution:
        """p(z | prompt) of texts that begin with prompts: batch shape [B], event shape [N, D].

        Args:
            prompt: [B, D], the mean embedding of each prompt's tokens; zeros of an empty one.
        """
        raise NotImplementedError(f"{type(self).__name__} reads no prompt")

    @property
    def transport(self) -> nn.Module | None:
        """A map of thoughts [..., N, D] that becomes a part of the decoder, whose layers read what it gives.

        None: they read the thoughts as they are.
        """
        return None

    @torch.no_grad()
    def begin_at(self, thoughts: Tensor) -> None:
        """Called before it is fitted to posteriors, with a draw of each, [S, N, D], to begin there if it wants."""

    def join(self, guide: nn.Module) -> None:
        """Called once, before anything is learned, with the guide that the model's posteriors will have."""


def reads_prompt(model: nn.Module) -> bool:
    """True where `model` draws thoughts given a prompt; a program of one's own need not have a prior to ask."""
    return bool(getattr(getattr(model, "prior", None), "reads_prompt", False))


def check_range(name: str, value: int, low: int, high: int) -> None:
    """Raises UserError unless the option `name` of a prior lies from `low` to `high`."""
    if not low <= value <= high:
        raise UserError(f"prior: {name} = {value}: from {low} to {high}")


def perceptron(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """A network of one hidden layer [..., inputs] -> [..., outputs] that gives zeros at first."""
    network = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))
    for parameter in network[-1].parameters():
        nn.init.zeros_(parameter)
    return network


STRONGEST = 3.0
"""A network narrows or widens a number by at most exp(3), so that none makes a density overflow."""


def bounded(log_scale: Tensor) -> Tensor:
    """A log scale, elementwise within `STRONGEST` of 0."""
    return STRONGEST * torch.tanh(log_scale / STRONGEST)


def unbounded(log_scale: Tensor) -> Tensor:
    """The number of which `bounded` makes `log_scale`, or the nearest that it can make."""
    return STRONGEST * torch.atanh((log_scale / STRONGEST).clamp(-0.99, 0.99))


class Made(dist.TorchDistribution, ABC):
    """A density over thoughts [N, D] that networks make of standard normals.

    Args:
        like: a tensor of its type, on its device. event_shape: [N, D].
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, like: Tensor, event_shape: torch.Size, batch_shape: torch.Size = torch.Size()):  # noqa: B008
        self.like = like
        super().__init__(batch_shape, event_shape, validate_args=False)

    @property
    @abstractmethod
    def normals(self) -> int:
        """Standard normals of which a draw is made."""

    @abstractmethod
    def make(self, normals: Tensor) -> Tensor:
        """Thoughts [..., N, D] of standard normals [..., `normals`]."""

    @property
    def base_dist(self) -> dist.TorchDistribution:
        """The standard normals of a draw."""
        blank = self.like.new_zeros(*self.batch_shape, self.normals)
        return dist.Normal(blank, torch.ones_like(blank), validate_args=False).to_event(1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws [*sample_shape, ..., N, D] from torch's global generator."""
        return self.make(self.base_dist.rsample(torch.Size(sample_shape)))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Made:
        """The same with another batch shape."""
        new = copy.copy(self)
        new._batch_shape = torch.Size(batch_shape)
        return new


@rsample_from.register
def _(distribution: Made, normals: Normals) -> Tensor:
    return distribution.make(rsample_from(distribution.base_dist, normals))


@rsample_from.register
def _(distribution: TransformedDistribution, normals: Normals) -> Tensor:
    drawn = rsample_from(distribution.base_dist, normals)
    for transform in distribution.transforms:
        drawn = transform(drawn)
    return drawn
