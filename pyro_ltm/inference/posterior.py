"""The fast loop: each sequence's posterior, fitted from scratch by a few gradient steps of its own parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_ltm.errors import UserError
from pyro_ltm.guides import Guide
from pyro_ltm.inference.optimizers import Adam, FastOptimizer
from pyro_ltm.noise import DrawFrom, Noise, draw
from pyro_ltm.objectives import Objective
from pyro_ltm.types import Batch, State


@dataclass(frozen=True)
class Posterior:
    """The fitted posteriors of a batch.

    Shapes:
        state: local parameters, leading dimension B.
        ids: [B] the sequences' stable names.
        history: [steps, B] the objective's bound of each sequence at each fast step, before the step, in nats; for an
            ELBO that is not of this library, [steps, 1], summed over the batch.

    Attributes:
        noise: the stream that the fit drew from. `sample` goes on with it: new draws after a fit on fresh noise, one
            draw for ever after a fit on fixed noise. `with_noise` gives draws that no fit has seen.
    """

    guide: Guide
    state: State
    ids: Tensor
    noise: Noise
    history: Tensor

    @property
    def distribution(self) -> TorchDistribution:
        """q(z): batch shape [B], event shape [N, D]."""
        return self.guide.distribution(self.state)

    def with_noise(self, seed: int) -> Posterior:
        """The same posterior drawing from another stream: what was fitted on one noise is judged on this one."""
        return dataclasses.replace(self, noise=Noise(self.ids, seed=seed))

    @torch.no_grad()
    def sample(self, particles: int = 1) -> Tensor:
        """Thoughts [K, B, N, D] from q."""
        q = self.distribution
        return draw(q.expand(torch.Size([particles, *q.batch_shape])), self.noise)


def fit_posterior(
    model: nn.Module,
    batch: Batch,
    *,
    guide: Guide,
    objective: ELBO,
    optimizer: FastOptimizer | None = None,
    steps: int = 16,
    noise: str = "fresh",
    seed: int = 0,
) -> Posterior:
    """Fits q(z) of every sequence in `batch` by `steps` fast steps, starting from `guide.init(batch)`.

    Leaves `.grad` of model and guide alone. A sequence's posterior does not depend on who shares its batch: the loss is
    a sum over sequences, the optimizer is elementwise, and noise is keyed by the sequence's id.

    Args:
        model: a Pyro program `model(batch, state)` with the sites `thoughts` and `tokens`.
        objective: the bound to raise; any Pyro ELBO with `differentiable_loss`.
        optimizer: moves the local parameters; `Adam()` when None.
        noise: "fresh" draws anew in each step; "fixed" repeats one draw as the reference implementation does, and
            what is fitted so must be scored on other noise.
        seed: of the noise, together with each sequence's id.

    Raises:
        UserError: the objective does not fit the guide or the noise, or `noise` is neither of the two.
    """
    check_noise(noise, objective)
    optimizer = optimizer or Adam()
    stream = Noise(batch.ids, seed=seed, fixed=noise == "fixed")
    history = []
    with frozen(model), frozen(guide):
        precompute: Any = getattr(model, "precompute", None)
        batch = precompute(batch) if precompute else batch
        state = guide.init(batch)
        memory = optimizer.init(state)
        for step in range(steps):
            leaves = {name: value.detach().requires_grad_() for name, value in state.items()}
            with torch.enable_grad(), DrawFrom(stream):
                bounds = sequence_bounds(objective, model, guide, batch, leaves)
                grads = torch.autograd.grad(bounds.sum(), list(leaves.values()))
            # The bound is to rise, and optimizers descend.
            downhill = {name: -grad for name, grad in zip(leaves, grads, strict=True)}
            state, memory = optimizer.step(state, downhill, memory, step=step, steps=steps)
            history.append(bounds.detach())
    empty = torch.zeros(0, batch.size, device=batch.inputs.device)
    return Posterior(guide, state, batch.ids, stream, torch.stack(history) if history else empty)


def check_noise(noise: str, objective: ELBO) -> None:
    """Raises UserError when `noise` is unknown, or would let the fit raise `objective` without end.

    On one fixed draw z is a number, and an estimated KL there falls without bound as q widens around it.
    """
    if noise not in ("fresh", "fixed"):
        raise UserError(f"noise = {noise!r}: choose from fresh, fixed")
    if noise == "fixed" and isinstance(objective, Objective) and not objective.needs_analytic_kl:
        raise UserError(
            f"noise = 'fixed' with {type(objective).__name__}: one draw cannot estimate a KL; "
            "use the objective 'analytic-elbo', or noise = 'fresh'"
        )


def sequence_bounds(objective: ELBO, model: nn.Module, guide: nn.Module, batch: Batch, state: State) -> Tensor:
    """The objective's bound of each sequence in nats, [B]; [1] from an ELBO that only gives the whole batch's."""
    if isinstance(objective, Objective):
        return objective.bound(objective.terms(model, guide, batch, state))
    whole: Any = objective  # the method is on Pyro's subclasses, not on its ELBO
    return -whole.differentiable_loss(model, guide, batch, state).reshape(1)


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Within it no parameter of `module` asks for a gradient: none is computed and nothing is kept for one."""
    learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
