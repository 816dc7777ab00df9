"""One step of training: Algorithm 1 of the paper (arXiv:2502.01567), whose fast steps are `FastLoop.fit`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_ltm.distributed import gathered, is_shared
from pyro_ltm.inference import FastLoop, Posterior
from pyro_ltm.interruption import leave_if_asked
from pyro_ltm.model import LatentThoughtModel
from pyro_ltm.noise import DrawFrom
from pyro_ltm.objectives import Objective, Terms
from pyro_ltm.priors import reads_prompt
from pyro_ltm.training.parallel import Parallel
from pyro_ltm.types import Batch, frozen


@dataclass(frozen=True)
class StepReport:
    """Figures of a slow step, in nats; all scalars, still on the device.

    Attributes:
        bound: nats a token at the weight 1 of the KL, whatever was optimized; on the noise after the fit.
        distortion: nats a token. rate: nats a sequence. tokens: targets read. grad_norm: before clipping.
        finite: whether the step was taken; otherwise the decoder is as it was.
    """

    bound: Tensor
    distortion: Tensor
    rate: Tensor
    tokens: Tensor
    grad_norm: Tensor
    finite: Tensor


def train_step(
    model: LatentThoughtModel,
    batches: Sequence[Batch],
    loop: FastLoop,
    slow_optimizer: torch.optim.Optimizer,
    *,
    clip: float,
    seed: int,
    decoder_only: bool = False,
    parallel: Parallel | None = None,
) -> StepReport:
    """Fast steps on each sequence's posterior, then one slow step of the decoder over all micro-batches.

    Of several processes each has `batches` of its own, and figures, gradient and step are those of all together
    (`parallel`, of `model` and the loop's guide; None: this process by itself).

    With `decoder_only`, the decoder learns as its twin does: there is nothing to fit, and its loss is exact.

    The loss is a sum over tokens divided by the tokens of all micro-batches together, so that accumulation changes
    nothing. A gradient that is not finite is thrown away. Dropout is of the slow step alone, keyed by `seed` and the
    sequences: thoughts are fitted, as they are in every score, under the decoder that is used.
    """
    parallel = parallel or Parallel(SlowPass(model, loop.guide))
    world, device = parallel.world, batches[0].inputs.device
    distortion, rate = torch.zeros((), device=device), torch.zeros((), device=device)
    tokens = torch.stack([batch.tokens() for batch in batches]).sum()
    sequences = torch.full_like(tokens, sum(batch.size for batch in batches))
    tokens, sequences = world.sum(torch.stack([tokens, sequences])).unbind()
    slow_optimizer.zero_grad(set_to_none=True)

    def fitted(batch: Batch) -> Posterior | None:  # fast: q(z) of each sequence, the decoder frozen
        leave_if_asked()
        return None if decoder_only else loop.fit(model, batch, seed=seed, keep_graph=loop.guide.keeps_graph)

    def learn(batch: Batch, posterior: Posterior | None, *, more: bool) -> None:
        learned = replace(batch, dropout=seed)
        with parallel.accumulating(more):
            loss, *figures = parallel.forward(learned, posterior, loop.objective, seed)
            (loss * world.size / tokens).backward()  # processes average their gradients
        for total, figure in zip((distortion, rate), figures, strict=True):
            total.add_(figure)

    *first, last = batches
    with parallel.gathered():
        with world.leaving_together():  # nothing is sent before the last pass
            for batch in first:
                learn(batch, fitted(batch), more=True)
            posterior = fitted(last)
        learn(last, posterior, more=False)
    distortion, rate = world.sum(torch.stack([distortion, rate])).unbind()
    parameters = [p for group in slow_optimizer.param_groups for p in group["params"]]
    grad_norm = gathered(nn.utils.clip_grad_norm_(parameters, clip or float("inf")))
    bound = (distortion + rate) / tokens
    finite = torch.isfinite(grad_norm) & torch.isfinite(bound)
    step_where(finite, slow_optimizer)
    mean_rate = rate / sequences
    if not decoder_only:
        loop.objective.after_step(torch.where(finite, mean_rate, torch.nan))
    return StepReport(bound, distortion / tokens, mean_rate, tokens, grad_norm, finite)


def step_where(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """The optimizer's step if `finite` (bool, a scalar), else none.

    An optimizer that takes `found_inf`, as torch's GradScaler asks, decides on its device; another waits for it, and so
    does one of shares, with which torch mixes no other tensor.
    """
    shares = any(is_shared(parameter) for group in optimizer.param_groups for parameter in group["params"])
    if getattr(optimizer, "_step_supports_amp_scaling", False) and not shares:
        vars(optimizer).update(grad_scale=None, found_inf=(~finite).float())
        optimizer.step()
        del vars(optimizer)["grad_scale"], vars(optimizer)["found_inf"]  # of this step alone
    elif finite:
        optimizer.step()


class SlowPass(nn.Module):
    """Model and guide as one module, whose `forward` gives the loss of a slow step: what several processes wrap."""

    def __init__(self, model: nn.Module, guide: nn.Module):
        super().__init__()
        self.model: Any = model
        self.guide = guide

    def begin(self) -> None:
        """Called once before anything else of it, by what wraps it: nothing is to be done."""

    def forward(
        self, batch: Batch, posterior: Posterior | None, objective: Objective, seed: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, distortion and rate of a batch, each summed over it, in nats.

        Without a `posterior` the decoder writes as its twin does, and its loss is exact.
        """
        model = self.model
        if posterior is None:
            loss = -model.log_prob_without_thoughts(batch).sum()
            return loss, loss.detach(), loss.new_zeros(())
        # Thoughts drawn from q, the decoder moved to write these tokens from them.
        with DrawFrom(posterior.noise):
            loss, terms = slow_loss(model, batch, posterior, objective)
        if reads_prompt(model):
            loss = loss + model.prompt_loss(batch, posterior.sample()[0], seed=seed).sum()
        return loss, terms.distortion.detach().sum(), terms.rate.detach().sum()


def slow_loss(model: nn.Module, batch: Batch, posterior: Posterior, objective: Objective) -> tuple[Tensor, Terms]:
    """Loss of decoder and guide, summed over the batch in nats, and the terms that the decoder saw."""
    guide = posterior.guide
    if guide.learning == "none" or (objective.has_one_loss and guide.learning != "semi-amortized"):
        terms = objective.terms(model, guide, batch, posterior.state)
        return objective.decoder_loss(terms).sum(), terms
    # Each learns by its own loss, on draws of its own: neither sees the other's gradient.
    fitted = {name: value.detach() for name, value in posterior.state.items()}
    with frozen(guide):
        terms = objective.terms(model, guide, batch, fitted)
    return objective.decoder_loss(terms).sum() + guide_loss(model, batch, posterior, objective), terms


def guide_loss(model: nn.Module, batch: Batch, posterior: Posterior, objective: Objective) -> Tensor:
    """Loss of the parameters that all sequences share, summed over the batch in nats, without gradient to the model.

    After the fast steps, where the graph reaches back through them; an encoder that they cut off learns where it starts
    them (arXiv:1710.06085).
    """
    guide, state = posterior.guide, posterior.state
    if guide.learning == "semi-amortized":
        state = state | guide.init(batch)
    with frozen(model):
        return objective.differentiable_loss(model, guide, replace(batch, dropout=None), state)
