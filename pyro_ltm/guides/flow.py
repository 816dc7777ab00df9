"""A normalizing flow: networks that all sequences share bend a Gaussian, and each sequence says how."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_ltm.errors import UserError
from pyro_ltm.guides.base import Guide, Learning, check_size
from pyro_ltm.noise import Normals, rsample_from
from pyro_ltm.registry import Card
from pyro_ltm.types import Batch, State
from pyro_ltm.weights import Weights


class Flow(Guide):
    """Affine couplings (arXiv:1605.08803) with shared networks, then a scale and a shift for each latent dimension.

    Each sequence has a context vector that says how the networks bend its posterior; at the context 0 they do not, so
    the family contains mean-field, and it starts at the prior.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        depth: couplings; each moves one half of the N D numbers given the other, in turns.
        context: length C of a sequence's context vector.
        hidden: width of the networks.
    """

    card: ClassVar[Card] = Card(
        summary="a normalizing flow (RealNVP): shared networks bend each sequence's Gaussian",
        cost="2 N D + C numbers a sequence; networks that learn with the decoder",
        when="posteriors that no Gaussian fits, once trained with the decoder; fit it with stl",
        reference="arXiv:1605.08803",
    )
    arguments: ClassVar[tuple[str, ...]] = ("depth",)
    learning: Learning = "shared"

    def __init__(self, thoughts: int, dim: int, depth: int = 2, context: int = 16, hidden: int = 64):
        super().__init__(thoughts, dim)
        if thoughts * dim < 2:
            raise UserError(f"guide: flow over {thoughts} thoughts of dim {dim}: at least 2 numbers, in two halves")
        for name, value, most in (("depth", depth, 64), ("context", context, 1 << 12), ("hidden", hidden, 1 << 14)):
            if not 1 <= value <= most:
                raise UserError(f"guide: {name} = {value}: from 1 to {most}")
        check_size("flow", 2 * thoughts * dim + context, "choose a smaller model")
        self.context = context
        first = thoughts * dim // 2
        halves = [first, thoughts * dim - first]
        self.couplings = nn.ModuleList(
            Coupling(halves[i % 2], halves[1 - i % 2], context=context, hidden=hidden) for i in range(depth)
        )

    def init(self, batch: Batch) -> State:
        """`context` [B, C]; `loc` and `log_variance`, each [B, N, D]."""
        loc = torch.zeros(batch.size, self.thoughts, self.dim, device=batch.device)
        return {"context": loc.new_zeros(batch.size, self.context), "loc": loc, "log_variance": loc.clone()}

    def distribution(self, state: State) -> dist.TorchDistribution:
        """Of loc + exp(log_variance / 2) f(eps; context) over [N, D], for standard normals eps and the couplings f."""
        return Flowed(Weights(self.couplings), state["context"], state["loc"], state["log_variance"] / 2)


STRONGEST = 2.0
"""One coupling scales a number by at most exp(2), so that no network makes a density overflow."""


class Coupling(nn.Module):
    """A shift and a log scale for one half of the numbers, read off the other half.

    The context multiplies the hidden layer: without context there is no shift and no scale, whatever the weights, and
    yet both have a gradient for it.

    Args:
        given: numbers read. moved: numbers to be moved. context: length of the context. hidden: width.
    """

    def __init__(self, given: int, moved: int, *, context: int, hidden: int):
        super().__init__()
        self.read = nn.Linear(given, hidden)
        self.gate = nn.Linear(context, hidden, bias=False)
        self.write = nn.Linear(hidden, 2 * moved, bias=False)

    def forward(self, given: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Shift and log scale [..., moved], from `given` [..., given] and `context` [B, C]."""
        written: Tensor = self.write(torch.tanh(self.read(given)) * self.gate(context))
        shift, strength = written.chunk(2, dim=-1)
        return shift, STRONGEST * torch.tanh(strength / STRONGEST)


class Flowed(dist.TorchDistribution):
    """Standard normals bent by couplings, then scaled and shifted, over thoughts [N, D]. Mean and KL are not known.

    Nothing is cached: the density of a draw goes back through the couplings, as that of any other point.

    Args:
        couplings: with their weights of this moment, in the order in which they bend. context: [B, C]. loc, log_scale:
            [..., N, D].
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {"loc": constraints.independent(constraints.real, 2)}
    support = constraints.independent(constraints.real, 2)
    has_rsample = True

    def __init__(self, couplings: Weights, context: Tensor, loc: Tensor, log_scale: Tensor):
        self.couplings, self.context, self.loc, self.log_scale = couplings, context, loc, log_scale
        super().__init__(loc.shape[:-2], loc.shape[-2:], validate_args=False)

    @property
    def base_dist(self) -> dist.TorchDistribution:
        """Standard normals over N D numbers, which the couplings bend."""
        blank = torch.zeros_like(self.loc).flatten(-2)
        return dist.Normal(blank, torch.ones_like(blank), validate_args=False).to_event(1)

    def log_prob(self, value: Tensor) -> Tensor:
        """[...] of thoughts [..., N, D], in nats."""
        x = ((value - self.loc) * torch.exp(-self.log_scale)).flatten(-2)
        log_det = self.log_scale.sum((-2, -1))
        halves = self._halves(x)
        for i, coupling in reversed(list(enumerate(self._bound_couplings()))):
            shift, log_scale = coupling(halves[i % 2], self.context)
            halves[1 - i % 2] = (halves[1 - i % 2] - shift) * torch.exp(-log_scale)
            log_det = log_det + log_scale.sum(-1)
        log_prob: Tensor = self.base_dist.log_prob(torch.cat(halves, dim=-1)) - log_det
        return log_prob

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draws [*sample_shape, ..., N, D] from torch's global generator."""
        each = self.expand(torch.Size(sample_shape) + self.batch_shape)
        return rsample_from(each, lambda shape: torch.randn(shape, dtype=self.loc.dtype, device=self.loc.device))

    def expand(self, batch_shape: Any, _instance: Any = None) -> Flowed:
        """The same with another batch shape."""
        shape = torch.Size(batch_shape) + self.event_shape
        return Flowed(self.couplings, self.context, self.loc.expand(shape), self.log_scale.expand(shape))

    def bend(self, eps: Tensor) -> Tensor:
        """Thoughts [..., N, D] made of standard normals [..., N D]."""
        halves = self._halves(eps)
        for i, coupling in enumerate(self._bound_couplings()):
            shift, log_scale = coupling(halves[i % 2], self.context)
            halves[1 - i % 2] = halves[1 - i % 2] * torch.exp(log_scale) + shift
        bent = torch.cat(halves, dim=-1).unflatten(-1, self.event_shape)
        return self.loc + torch.exp(self.log_scale) * bent

    def _bound_couplings(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.couplings.module())

    def _halves(self, x: Tensor) -> list[Tensor]:
        first = x.shape[-1] // 2
        return [x[..., :first], x[..., first:]]


@rsample_from.register
def _(distribution: Flowed, normals: Normals) -> Tensor:
    return distribution.bend(normals(torch.Size([*distribution.batch_shape, distribution.event_shape.numel()])))
