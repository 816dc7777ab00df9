"""Algorithm 1 of latent-thought language models (Kong et al., arXiv:2502.01567), as one would write it in plain torch.

    python -m examples.algorithm_1

`decoder(tokens [B, T], thoughts [B, N, D])` gives logits [B, T, V]; `decoder.shape` has N and D. pyro-ltm computes the
same, faster, with parts that can be swapped: `pyro_ltm/training/step.py` is its Algorithm 1. Tests and benchmarks
compare with the code below.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def negative_elbo(
    decoder: nn.Module, inputs: Tensor, targets: Tensor, loc: Tensor, log_variance: Tensor, noise: Tensor
) -> Tensor:
    """Distortion of one draw z = loc + sd * noise, and KL(q || N(0, I)), in nats: a bound on noise new to the fit."""
    thoughts = loc + torch.exp(0.5 * log_variance) * noise
    logits = decoder(inputs, thoughts)
    logits = logits.float() if logits.dtype == torch.bfloat16 else logits
    distortion = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return distortion + 0.5 * (loc.square() + log_variance.exp() - 1 - log_variance).sum()


@dataclass(frozen=True, kw_only=True)
class FastLoop:
    """Fits q(z) of each sequence from scratch: AdamW, cosine decay to a tenth, on one draw of noise or `fresh` ones.

    The defaults are the reference implementation's, whose noise stays the same in all fast steps.
    """

    steps: int = 16
    lr: float = 0.34
    lr_final: float = 0.1
    fresh: bool = False
    init_loc: float = 0.01
    init_log_variance: float = -5.0
    init_noise: float = 0.1

    def fit(
        self, decoder: nn.Module, inputs: Tensor, targets: Tensor, normals: Sequence[Tensor] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """loc and log variance [B, N, D], and the noise of the next draw.

        `normals`: three of that shape, for the first loc, the first log variance and the noise; drawn when not given.
        """
        shape = len(inputs), decoder.shape.thoughts, decoder.shape.dim
        first, second, noise = normals or [torch.randn(shape, device=inputs.device) for _ in range(3)]
        loc = (self.init_loc * first).requires_grad_()
        log_variance = (self.init_log_variance + self.init_noise * second).requires_grad_()
        optimizer = torch.optim.AdamW([loc, log_variance], lr=self.lr)
        for step in range(self.steps):
            share = self.lr_final + (1 - self.lr_final) * 0.5 * (1 + math.cos(math.pi * step / self.steps))
            optimizer.param_groups[0]["lr"] = self.lr * share
            optimizer.zero_grad()
            (negative_elbo(decoder, inputs, targets, loc, log_variance, noise) / targets.numel()).backward()
            optimizer.step()
            noise = torch.randn_like(noise) if self.fresh else noise
        return loc.detach(), log_variance.detach(), noise


def train_step(
    decoder: nn.Module, slow: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, fast: FastLoop, clip: float = 1.0
) -> float:
    """Algorithm 1: fast steps for each sequence's q(z), then one slow step of the decoder. Nats a token."""
    loc, log_variance, noise = fast.fit(decoder, inputs, targets)
    slow.zero_grad()  # the fast steps left gradients in the decoder
    loss = negative_elbo(decoder, inputs, targets, loc, log_variance, noise) / targets.numel()
    loss.backward()
    nn.utils.clip_grad_norm_(decoder.parameters(), clip)
    slow.step()
    return loss.item()


def main(steps: int = 60, report: int = 10) -> None:
    """Trains a tiny decoder on the letters of this file, with a line every so many steps."""
    from benchmarks.plain import Plain, Shape

    torch.manual_seed(0)
    text = torch.tensor(list(Path(__file__).read_bytes()))
    shape = Shape(vocab_size=256, dim=32, layers=2, heads=2, thoughts=4, max_length=64, window=16, embedding_scale=6)
    decoder = Plain(shape)
    slow = torch.optim.AdamW(decoder.parameters(), lr=1e-2)
    for step in range(steps):
        tokens = torch.stack([text[i : i + 65] for i in torch.randint(len(text) - 65, (16,))])
        loss = train_step(decoder, slow, tokens[:, :-1], tokens[:, 1:], FastLoop(fresh=True))
        if (step + 1) % report == 0:
            print(f"slow step {step + 1}: at most {loss:.3f} nats a letter")
    print("Next: pyro_ltm/training/step.py, or pyro-ltm train --data python-docs --out runs/first")


if __name__ == "__main__":
    main()
