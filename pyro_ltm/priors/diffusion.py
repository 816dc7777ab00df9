"""A diffusion model over thoughts, by its variational bound."""

from __future__ import annotations

import hashlib
from typing import ClassVar, cast

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_ltm.priors.base import Made, Prior, bounded, check_range
from pyro_ltm.priors.mixer import Mixer
from pyro_ltm.registry import Card
from pyro_ltm.weights import Weights

CLEAREST = 5.0
"""Log ratio of signal to noise after the first step; minus that after the last."""


class Diffusion(Prior):
    """z_T from N(0, I), then z_T-1, ..., z_0 = z, each by a Normal whose mean and width a denoiser reads off the last.

    The noising chain keeps N(0, I) as it is, and the denoiser begins with that chain's own reverse: so the prior begins
    as N(0, I) exactly. Ho et al., arXiv:2006.11239; Kingma et al., arXiv:2107.00630.

    The density has no closed form. `log_prob` is log p(z_0..T) - log q(z_1..T | z_0) along one noising path drawn from
    q: on average a lower bound on log p(z), the model's variational bound, and its exponential is p(z) on average. So
    every rate, and every bound made of it, is on average no better than the density itself would give. The path is
    keyed by z: the same thoughts have the same one.

    Args:
        thoughts: thought vectors N. dim: width D of each.
        steps: T. depth: blocks of the denoiser. hidden: width of their networks.
    """

    card: ClassVar[Card] = Card(
        summary="a diffusion model over thoughts; its variational bound stands for its density",
        cost="T passes of a small denoiser; rates and bounds are estimates, on average too high",
        when="texts from the prior count more than the bound",
        reference="arXiv:2006.11239",
    )
    arguments: ClassVar[tuple[str, ...]] = ("steps",)
    has_exact_density: ClassVar[bool] = False
    is_recorded: ClassVar[bool] = False  # a path's seed is read off the thoughts

    def __init__(self, thoughts: int, dim: int, steps: int = 8, depth: int = 2, hidden: int = 128):
        super().__init__(thoughts, dim)
        check_range("steps", steps, 2, 1 << 10)
        self.denoiser = Denoiser(thoughts, dim, steps, depth, hidden)
        signal = torch.sigmoid(torch.linspace(CLEAREST, -CLEAREST, steps)).sqrt()  # of z_0 in z_t
        self.keep: Tensor
        self.register_buffer("keep", signal / torch.cat([torch.ones(1), signal[:-1]]), persistent=False)

    def forward(self) -> dist.TorchDistribution:
        """The prior of one sequence: event shape [N, D]."""
        return Diffused(Weights(self.denoiser), self.keep, torch.Size([self.thoughts, self.dim]))


class Denoiser(nn.Module):
    """A step back: mean and log scale, relative to those of the noising chain's own reverse; zeros at first."""

    def __init__(self, thoughts: int, dim: int, steps: int, depth: int, hidden: int):
        super().__init__()
        self.time = nn.Parameter(torch.randn(steps, dim))
        self.mixer = Mixer(thoughts, dim, depth, hidden)
        self.head = nn.Linear(dim, 2 * dim)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, noised: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """[..., N, D] each, from `noised` thoughts [..., N, D] and `time` [..., 1, D], the rows of their steps."""
        mean, log_scale = self.head(self.mixer(noised + time)).chunk(2, dim=-1)
        return mean, bounded(log_scale)


class Diffused(Made):
    """Thoughts that a denoiser makes of noise.

    Args:
        denoiser: with its weights of this moment. keep: [T] share of z_t-1 that is left in z_t. event_shape: [N, D].
    """

    def __init__(self, denoiser: Weights, keep: Tensor, event_shape: torch.Size):
        super().__init__(keep, event_shape)
        self.denoiser, self.keep = denoiser, keep

    @property
    def normals(self) -> int:
        """(T + 1) N D."""
        return (len(self.keep) + 1) * self.event_shape.numel()

    def make(self, normals: Tensor) -> Tensor:
        """See `Made`."""
        network = self._network()
        z, *eps = normals.unflatten(-1, (-1, *self.event_shape)).unbind(-3)
        for step, drawn in zip(reversed(range(len(self.keep))), eps, strict=True):
            mean, log_scale = network(z, network.time[step])
            z = self.keep[step] * z + self._noise[step] * (mean + log_scale.exp() * drawn)
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """[...] of thoughts [..., N, D], in nats: an estimate, whose exponential is the density on average."""
        network, eps = self._network(), path_noise(value, len(self.keep))
        chain = [value]
        for keep, noise, drawn in zip(self.keep, self._noise, eps, strict=True):
            chain.append(keep * chain[-1] + noise * drawn)
        before, after = torch.stack(chain[:-1]), torch.stack(chain[1:])  # [T, ..., N, D]
        per_step = (-1, *[1] * value.dim())
        keep, noise = self.keep.view(per_step), self._noise.view(per_step)
        time = network.time.view(len(self.keep), *[1] * (value.dim() - 1), -1)
        mean, log_scale = network(after, time)
        residual = ((before - keep * after) / noise - mean) * torch.exp(-log_scale)
        gained = 0.5 * (eps.square() - residual.square()) - log_scale
        last = dist.Normal(0.0, 1.0, validate_args=False).log_prob(chain[-1])
        log_prob: Tensor = gained.sum((0, -2, -1)) + last.sum((-2, -1))
        return log_prob

    @property
    def _noise(self) -> Tensor:
        """[T] standard deviation of what is added in each step."""
        return (1 - self.keep.square()).sqrt()

    def _network(self) -> Denoiser:
        return cast(Denoiser, self.denoiser.module())


def path_noise(thoughts: Tensor, steps: int) -> Tensor:
    """Standard normals [T, ..., N, D] for the noising of `thoughts` [..., N, D], keyed by their bits.

    Fresh for every draw, and the same whoever shares the batch, where that changes no bit of the thoughts: noise that
    stayed the same could be learned by heart, and what is fitted on it would be no bound.
    """
    rows = thoughts.detach().reshape(-1, *thoughts.shape[-2:]).cpu().contiguous()
    drawn = torch.empty(steps, *rows.shape, dtype=rows.dtype)
    for at, row in enumerate(rows):
        seed = int.from_bytes(hashlib.blake2b(row.numpy().tobytes(), digest_size=8).digest(), "little") >> 1
        drawn[:, at] = torch.randn(drawn[:, at].shape, generator=torch.Generator().manual_seed(seed), dtype=rows.dtype)
    return drawn.view(steps, *thoughts.shape).to(thoughts.device)
