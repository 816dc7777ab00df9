"""Annealed importance sampling: from draws of a density that we know to the posterior, by way of all between them.

Neal, "Annealed importance sampling", 2001; of decoders: Wu et al., arXiv:1611.04273; both ways: Grosse et al.,
arXiv:1511.02543.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.noise import Noise, draw

BEST_ACCEPTANCE = 0.65
"""Of Hamiltonian steps in many dimensions (Neal 2011)."""

SCHEDULES = ("sigmoid", "linear")
"""Temperatures closer together at both ends (arXiv:1611.04273), or evenly apart."""


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """How chains are annealed from a density that we know to the posterior.

    Args:
        temperatures: above 0. chains: C of each sequence. leapfrogs: of each transition.
        schedule: one of `SCHEDULES`.

    Raises:
        UserError: a schedule that is not one of them, or a count below 1.
    """

    temperatures: int = 32
    chains: int = 4
    leapfrogs: int = 4
    schedule: str = "sigmoid"

    def __post_init__(self) -> None:
        if self.schedule not in SCHEDULES:
            raise UserError(f"schedule = {self.schedule!r}: choose from {', '.join(SCHEDULES)}")
        for name in ("temperatures", "chains", "leapfrogs"):
            if (count := getattr(self, name)) < 1:
                raise UserError(f"{name} = {count}: at least 1")

    @property
    def ladder(self) -> list[float]:
        """The temperatures from 0 to 1, both among them."""
        return temperatures(self.temperatures, schedule=self.schedule).tolist()


@dataclass(frozen=True)
class AISResult:
    """Results of the chains.

    Shapes:
        log_weight: [C, B] whose exponentials are, in expectation, p(x) of each sequence, whatever the chains did.
        acceptance: [steps, B] share of transitions taken, mean over chains.
    """

    log_weight: Tensor
    acceptance: Tensor


def temperatures(steps: int, *, schedule: str = "sigmoid", sharpness: float = 4.0) -> Tensor:
    """[steps + 1] from 0 to 1 by one of `SCHEDULES`, float64; `sharpness` is the sigmoid's."""
    if schedule == "linear":
        return torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    line = torch.sigmoid(sharpness * torch.linspace(-1, 1, steps + 1, dtype=torch.float64))
    return (line - line[0]) / (line[-1] - line[0])


def anneal(target: LogJoint, start: TorchDistribution, how: Annealing, *, noise: Noise, tuning: Noise) -> AISResult:
    """Annealed importance sampling along q0(z)^(1 - b) p(x, z)^b, from q0 = `start` at b = 0 to the posterior at b = 1.

    Each step raises b, adds what that changes to the weights, then moves the chains by one Hamiltonian transition that
    keeps the density at b. A first run on other noise finds the step size of each transition and sequence; the run that
    counts keeps them, because chains that tune themselves would make the weights biased.

    Args:
        target: log p(x, z) of the batch.
        start: batch shape [B], event shape [N, D]; the prior, or a fitted posterior.
        noise: of the run that counts. tuning: of the run that tunes; another stream.
    """
    return _run(target, start, how, noise, _tuned(target, start, how, tuning), tune=False)


def anneal_both_ways(
    target: LogJoint, start: TorchDistribution, exact: Tensor, how: Annealing, *, noise: Noise, tuning: Noise
) -> tuple[AISResult, AISResult]:
    """`anneal`, and the same path backwards from an exact draw of each posterior (bidirectional Monte Carlo).

    Who wrote a text from known thoughts has such a draw. Exponentials of minus the backward log weights are, in
    expectation, 1 / p(x): so the forward ones bound log p(x) from below and the backward ones from above.

    Args:
        exact: [B, N, D]; all chains of a sequence begin there. The others: as in `anneal`.
    """
    ladder, sizes = how.ladder, _tuned(target, start, how, tuning)
    forward = _run(target, start, how, noise, sizes, tune=False)
    z = exact.expand(how.chains, *exact.shape)
    path = _Path(target, start, _width(start, z), how.leapfrogs)
    here = path.at(z)
    weight, acceptance = torch.zeros(z.shape[:2], dtype=torch.float64, device=z.device), []
    for step in reversed(range(how.temperatures)):
        before, now = ladder[step], ladder[step + 1]
        here, ratio = path.move(here, now, sizes[step].to(z), noise)
        weight = weight + (now - before) * here.gap.double()
        acceptance.append(ratio.clamp(max=0).exp().mean(0))
    return forward, AISResult(weight, torch.stack(acceptance[::-1]))


def _tuned(target: LogJoint, start: TorchDistribution, how: Annealing, tuning: Noise) -> Tensor:
    """The step sizes [temperatures, B] that a run on the noise `tuning` found."""
    sizes = torch.full((how.temperatures, start.batch_shape[0]), 0.5, dtype=torch.float64)
    _run(target, start, how, tuning, sizes, tune=True)
    return sizes


def _run(
    target: LogJoint, start: TorchDistribution, how: Annealing, noise: Noise, sizes: Tensor, *, tune: bool
) -> AISResult:
    """One pass over the temperatures; `sizes` [temperatures, B] are read, or with `tune` written."""
    with torch.no_grad():
        z = draw(start.expand(torch.Size([how.chains, *start.batch_shape])), noise)
    path = _Path(target, start, _width(start, z), how.leapfrogs)
    here = path.at(z)
    weight, acceptance = torch.zeros(z.shape[:2], dtype=torch.float64, device=z.device), []
    size = sizes[0]
    for step, (before, now) in enumerate(itertools.pairwise(how.ladder)):
        weight = weight + (now - before) * here.gap.double()
        size = size if tune else sizes[step]
        here, ratio = path.move(here, now, size.to(z), noise)
        taken = ratio.clamp(max=0).exp().mean(0)
        acceptance.append(taken)
        if tune:
            sizes[step] = size
            size = (size * torch.exp(taken.to(size) - BEST_ACCEPTANCE)).clamp(1e-4, 2.0)
    return AISResult(weight, torch.stack(acceptance))


@torch.no_grad()
def _width(start: TorchDistribution, z: Tensor) -> Tensor:
    """Each dimension of `z` moves in units of its own width under q0; of 1, where that is not known."""
    try:
        width: Tensor = start.stddev.expand(z.shape)
    except NotImplementedError:
        width = torch.ones_like(z)
    return width


@dataclass(frozen=True)
class _Place:
    """Where the chains are: z [C, B, N, D], both log densities [C, B] and their slopes [C, B, N, D]."""

    z: Tensor
    log_start: Tensor
    log_joint: Tensor
    start_slope: Tensor
    joint_slope: Tensor

    @property
    def gap(self) -> Tensor:
        """[C, B] log p(x, z) - log q0(z)."""
        return self.log_joint - self.log_start

    def level(self, share: float) -> Tensor:
        """[C, B] the log density at temperature `share`."""
        return (1 - share) * self.log_start + share * self.log_joint

    def slope(self, share: float) -> Tensor:
        """Its gradient, [C, B, N, D]."""
        return (1 - share) * self.start_slope + share * self.joint_slope


@dataclass(frozen=True)
class _Path:
    """The densities between q0 and the posterior, and transitions of so many leapfrogs that keep them."""

    target: LogJoint
    start: TorchDistribution
    width: Tensor
    leapfrogs: int

    def at(self, z: Tensor) -> _Place:
        """Both densities and their slopes at z [C, B, N, D]."""
        leaf = z.detach().requires_grad_()
        with torch.enable_grad():
            log_start, log_joint = self.start.log_prob(leaf), self.target(leaf)
            (start_slope,) = torch.autograd.grad(log_start.sum(), leaf)
            (joint_slope,) = torch.autograd.grad(log_joint.sum(), leaf)
        return _Place(z.detach(), log_start.detach(), log_joint.detach(), start_slope, joint_slope)

    def move(self, here: _Place, share: float, size: Tensor, noise: Noise) -> tuple[_Place, Tensor]:
        """One Hamiltonian transition (Neal 2011) that keeps the density at `share`, and its log acceptance [C, B]."""
        shape = here.z.shape
        normals = noise.normal(torch.Size([*shape[:2], shape[2:].numel() + 1]), event_dims=1, dtype=here.z.dtype)
        momentum, uniform = normals[..., :-1].view(shape), torch.special.ndtr(normals[..., -1])
        step = size[:, None, None] * self.width
        energy = momentum.square().sum((-2, -1)) / 2 - here.level(share)
        there = here
        for _ in range(self.leapfrogs):
            momentum = momentum + step / 2 * there.slope(share)
            there = self.at(there.z + step * momentum)
            momentum = momentum + step / 2 * there.slope(share)
        ratio = energy - momentum.square().sum((-2, -1)) / 2 + there.level(share)
        ratio = ratio.nan_to_num(nan=-torch.inf, posinf=-torch.inf)  # a chain that ran away stays where it was
        taken = uniform.log() < ratio

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            return torch.where(taken[..., None, None] if new.dim() > 2 else taken, new, old)

        fields = {name: chosen(getattr(there, name), getattr(here, name)) for name in _Place.__dataclass_fields__}
        return _Place(**fields), ratio
