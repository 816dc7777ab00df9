"""A mixture of Gaussians, with draws whose gradients are unbiased for its weights too."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import constraints

from pyro_ltm.errors import UserError
from pyro_ltm.guides.base import Guide, check_size
from pyro_ltm.noise import Noise, Normals, fold, rsample_from
from pyro_ltm.registry import Card
from pyro_ltm.types import Batch, State


class Mixture(Guide):
    """A mixture of Gaussians with diagonal covariances and learned weights (arXiv:1206.4665).

    Equal components would stay equal, so their first means lie apart, about `spread` from 0: the start is at most
    `spread**2 / 2` nats from the prior, on average (0.005 by default).

    Args:
        thoughts: thought vectors N. dim: width D of each.
        components: Gaussians, at least 2.
        spread: root mean square distance of their first means from 0, over all N D numbers together.
        seed: of those means, keyed by each sequence's id.
    """

    card: ClassVar[Card] = Card(
        summary="a mixture of Gaussians with diagonal covariances",
        cost="2 K N D numbers a sequence, and K times the work of mean-field",
        when="posteriors with several modes; fit it with stl, whose noise falls with the misfit",
        reference="arXiv:1805.08498",
    )
    arguments: ClassVar[tuple[str, ...]] = ("components",)

    def __init__(self, thoughts: int, dim: int, components: int = 2, spread: float = 0.1, seed: int = 0):
        super().__init__(thoughts, dim)
        if components < 2:
            raise UserError(f"guide: components = {components}: at least 2 (one is the guide 'mean-field')")
        if not 0 < spread <= 100:
            raise UserError(f"guide: spread = {spread}: above 0 (equal components stay equal), at most 100")
        numbers = components * (2 * thoughts * dim + 1)
        check_size(f"mixture of components = {components}", numbers, "choose fewer components")
        self.components = components
        self.spread = spread
        self.seed = seed

    def init(self, batch: Batch) -> State:
        """`logits` [B, K] of the weights; `loc` and `log_variance` of the components, each [B, K, N, D]."""
        shape = torch.Size([batch.size, self.components, self.thoughts, self.dim])
        noise = Noise(batch.ids, device=batch.device, seed=fold(self.seed, "init"))
        apart = noise.normal(shape, event_dims=3, dtype=torch.get_default_dtype())
        loc = self.spread / (self.thoughts * self.dim) ** 0.5 * apart
        return {"logits": loc.new_zeros(shape[:2]), "loc": loc, "log_variance": torch.zeros_like(loc)}

    def distribution(self, state: State) -> dist.TorchDistribution:
        """sum_k softmax(logits)_k N(loc_k, exp(log_variance_k)) over [N, D]."""
        return DiagonalMixture(state["logits"], state["loc"], (state["log_variance"] / 2).exp())


class DiagonalMixture(dist.TorchDistribution):
    """A mixture of K Gaussians with diagonal covariances over thoughts [N, D].

    Args:
        logits: [..., K]. loc, scale: [..., K, N, D].
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 3),
        "scale": constraints.independent(constraints.positive, 3),
    }
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, logits: Tensor, loc: Tensor, scale: Tensor):
        self.logits, self.loc, self.scale = logits, loc, scale
        super().__init__(logits.shape[:-1], loc.shape[-2:], validate_args=False)

    @property
    def mean(self) -> Tensor:
        """[..., N, D]."""
        return (self._weights * self.loc).sum(-3)

    @property
    def variance(self) -> Tensor:
        """[..., N, D] of each dimension by itself."""
        apart = self.loc - self.mean.unsqueeze(-3)
        return (self._weights * (self.scale.square() + apart.square())).sum(-3)

    def log_prob(self, value: Tensor) -> Tensor:
        """[...] of thoughts [..., N, D], in nats."""
        each = _log_normal((value.unsqueeze(-3) - self.loc) / self.scale, self.scale).sum((-2, -1))
        return torch.logsumexp(self.logits.log_softmax(-1) + each, -1)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws [*sample_shape, ..., N, D] from torch's global generator."""
        each = self.expand(torch.Size(sample_shape) + self.batch_shape)
        return rsample_from(each, lambda shape: torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiagonalMixture:
        """The same mixture with another batch shape."""
        batch = torch.Size(batch_shape)
        loc, scale = (value.expand(batch + value.shape[-3:]) for value in (self.loc, self.scale))
        return DiagonalMixture(self.logits.expand(batch + self.logits.shape[-1:]), loc, scale)

    @property
    def _weights(self) -> Tensor:
        return self.logits.softmax(-1)[..., None, None]


@rsample_from.register
def _(distribution: DiagonalMixture, normals: Normals) -> Tensor:
    """One normal picks the component, the others make the draw.

    Moving the parameters at fixed normals would never move a draw to another component, and say nothing of the weights.
    So the gradient is another one: it moves z = (z_1, z_2, ...) such that every S_d = P(z_d' <= z_d | z_<d) stays as
    it is, dz = -(dS/dz)^-1 dS (arXiv:1607.05690, 1805.08498). It is unbiased for all parameters, and noisy for the
    weights of components that lie far apart. There is no second derivative.
    """
    # S and its slopes become tiny in the tails: double precision throughout.
    logits = distribution.logits.double()
    loc, scale = (value.double().flatten(-2) for value in (distribution.loc, distribution.scale))  # [..., K, P]
    normal = normals(torch.Size([*distribution.batch_shape, 1 + loc.shape[-1]])).double()
    with torch.no_grad():
        edges = logits.softmax(-1).cumsum(-1)[..., :-1]
        component = (torch.special.ndtr(normal[..., :1]) > edges).sum(-1)[..., None, None]
        picked = component.expand(*component.shape[:-1], loc.shape[-1])
        z = (loc.gather(-2, picked) + scale.gather(-2, picked) * normal[..., None, 1:]).squeeze(-2)
    x = (z.unsqueeze(-2) - loc) / scale
    log_density = _log_normal(x, scale)
    before = log_density.cumsum(-1) - log_density
    weight = (logits.unsqueeze(-1) + before).softmax(-2)  # of each component given z_<d
    below = torch.special.ndtr(x)
    level = (weight * below).sum(-2)  # S, [..., P]
    with torch.no_grad():
        # dS/dz is lower triangular: the density of z_d given z_<d on its diagonal, and of rank K below it, because z_d'
        # acts on S_d through the weights alone: dS_d / dz_d' = sum_k weight_kd (below_kd - S_d) d log N_k / dz_d'.
        density = (weight * log_density.exp()).sum(-2, keepdim=True)
        left, right = weight * (below - level.unsqueeze(-2)) / density, -x / scale
    drawn: Tensor = _Implicit.apply(z, level / density.squeeze(-2), left, right)
    return drawn.unflatten(-1, distribution.event_shape).to(distribution.loc.dtype)


BLOCK = 64
"""Dimensions solved for at once: larger needs more memory, smaller more steps."""


class _Implicit(torch.autograd.Function):
    """The draws z [..., P], whose derivative is -A^-1 d`level` where A = I + the part of L^T R below the diagonal.

    L is `left` and R is `right`, both [..., K, P].
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, level: Tensor, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return z.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, None, None]:
        """Solves A^T v = gradient from the last block of dimensions to the first, and returns -v for `level`."""
        left, right = ctx.saved_tensors
        later = torch.zeros_like(left[..., :1])  # left times the v of all later dimensions, [..., K, 1]
        solved: list[Tensor] = []
        blocks = zip(*(value.split(BLOCK, dim=-1) for value in (gradient, left, right)), strict=True)
        for g, a, b in reversed(list(blocks)):
            rest = g - (b * later).sum(-2)
            above = (b.mT @ a).triu(1)
            v = torch.linalg.solve_triangular(above, rest.unsqueeze(-1), upper=True, unitriangular=True).squeeze(-1)
            later = later + (a * v.unsqueeze(-2)).sum(-1, keepdim=True)
            solved.append(v)
        return None, -torch.cat(solved[::-1], dim=-1), None, None


def _log_normal(x: Tensor, scale: Tensor) -> Tensor:
    """Log density of loc + scale * x, elementwise."""
    return -0.5 * (x.square() + math.log(2 * math.pi)) - scale.log()
