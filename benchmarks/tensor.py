"""Our mathematics without Pyro: the fast loop on tensors alone, to price the Pyro layer."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_ltm.model import Decoder
from pyro_ltm.noise import Noise
from pyro_ltm.optimizers import Adam
from pyro_ltm.types import Batch, frozen


def tensor_fit(
    decoder: Decoder, batch: Batch, steps: int, *, seed: int = 0, adam: Adam | None = None
) -> dict[str, Tensor]:
    """`loc` and `log_variance` [B, N, D] of a mean-field posterior after `steps` fast steps on the analytic ELBO."""
    adam = adam or Adam()
    shape = torch.Size([batch.size, decoder.config.thoughts, decoder.config.thought_width])
    noise = Noise(batch.ids, seed=seed, device=batch.device)
    targets = batch.targets.flatten()
    with frozen(decoder), decoder.fused_weights():
        with torch.no_grad():
            context = decoder.context(batch.inputs)
        state = {name: torch.zeros(shape, device=batch.device) for name in ("loc", "log_variance")}
        memory = adam.init(state)
        for step in range(steps):
            leaves = {name: value.detach().requires_grad_() for name, value in state.items()}
            loc, log_variance = leaves.values()
            scale = (0.5 * log_variance).exp()
            hidden = decoder(context, loc + noise.normal(shape, event_dims=2) * scale)
            log_probs = decoder.token_log_probs(hidden.flatten(0, 1), targets).view(batch.mask.shape)
            kl = 0.5 * (scale.square() + loc.square() - 1 - log_variance).sum((1, 2))
            losses = kl - (log_probs * batch.mask).sum(-1)
            grads = dict(zip(leaves, torch.autograd.grad(losses.sum(), [loc, log_variance]), strict=True))
            with torch.no_grad():
                state, memory = adam.step(leaves, grads, memory, losses=losses.detach(), step=step, steps=steps)
    return state
