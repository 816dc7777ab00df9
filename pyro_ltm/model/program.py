"""The latent-thought language model as a Pyro program."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor, nn

from pyro_ltm.config import ModelConfig
from pyro_ltm.model.decoder import Decoder
from pyro_ltm.model.likelihood import TokenSequence
from pyro_ltm.model.protocol import TokenDecoder
from pyro_ltm.model.sampling import sample_tokens
from pyro_ltm.noise import fold
from pyro_ltm.priors import Gaussian, Prior
from pyro_ltm.types import Batch, State
from pyro_ltm.weights import Weights, draws


class LatentThoughtModel(nn.Module):
    """Each sequence's thoughts are drawn from the prior; the decoder writes its tokens from them (arXiv:2502.01567).

    A plain module and a Pyro program with two sites, `thoughts` (event [N, D]) and `tokens` (event [T]), in the plate
    `sequences`. Without targets in the batch `tokens` is unobserved, so that `pyro.infer.Predictive` writes text.
    With `config.thoughts = 0` the first site is empty and this is the autoregressive twin.

    Args:
        config: shape of the decoder; `config.vocab_size` must be set.
        compute_dtype: precision of the decoder's matrix products.
        decoder: of this shape; None: a new `Decoder`.
        prior: of a sequence's thoughts; None: N(0, I).
    """

    def __init__(
        self,
        config: ModelConfig,
        compute_dtype: torch.dtype = torch.float32,
        decoder: TokenDecoder | None = None,
        prior: Prior | None = None,
    ):
        super().__init__()
        self.config = config
        self.prior = prior or Gaussian(config.thoughts, config.thought_width)
        self.decoder: TokenDecoder = Decoder(config, compute_dtype) if decoder is None else decoder
        if self.prior.transport is not None:
            self.decoder.take_transport(self.prior.transport)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.decoder.device

    def forward(self, batch: Batch, state: State | None = None) -> Tensor:
        """The program; returns the tokens [..., B, T]. `state` belongs to the guide and is not looked at."""
        weights = Weights(self.decoder)  # outside of the plate: a weight that is drawn is one for all sequences
        with pyro.plate("sequences", batch.size, dim=-1):
            thoughts = pyro.sample("thoughts", self.prior())
            tokens: Tensor = pyro.sample("tokens", self.likelihood(thoughts, batch, weights), obs=batch.targets)
        return tokens

    def likelihood(self, thoughts: Tensor, batch: Batch, weights: Weights | None = None) -> TokenSequence:
        """p(tokens | first input, `thoughts` [..., B, N, D]), by these weights of the decoder; None: as they are."""
        return TokenSequence(self.decoder, thoughts, batch, weights=weights)

    def write(self, thoughts: Tensor, prompt: Tensor, max_new_tokens: int | Sequence[int], **how: Any) -> Tensor:
        """Continues each prompt [B, P] from `thoughts` [B, N, D]: see `sample_tokens`, which takes the rest."""
        return sample_tokens(self.decoder, thoughts, prompt, max_new_tokens, **how)

    def log_prob_without_thoughts(self, batch: Batch) -> Tensor:
        """Nats [B] of the batch's tokens, exact, of the decoder without cross-attention, as its twin."""
        assert batch.targets is not None  # only known tokens have a probability
        mask = self.decoder.dropout_mask(batch)
        hidden = self.decoder(self.decoder.context(batch.inputs, mask), None, mask=mask)
        nats = self.decoder.token_log_probs(hidden.flatten(0, 1), batch.targets.flatten())
        return (nats.view_as(batch.mask) * batch.mask).sum(-1)

    def prior_given(self, tokens: Tensor, mask: Tensor) -> TorchDistribution:
        """p(z | prompt), batch shape [B], of the prompts `tokens` [B, T], as far as they lie in `mask` [B, T].

        Of a prior that reads prompts; the decoder's embeddings get no gradient from it.
        """
        counted = mask[..., None]
        total = (self.decoder.embed(tokens).detach() * counted).sum(1)
        return self.prior.given(total / counted.sum(1).clamp(min=1))

    def prompt_loss(self, batch: Batch, thoughts: Tensor, *, seed: int) -> Tensor:
        """[B] -log p(z | prompt) in nats of `thoughts` [B, N, D]; of each sequence a beginning is the prompt.

        Its length is drawn evenly from those that leave something to write, keyed by `seed` and the sequence.
        """
        assert batch.targets is not None  # only known tokens are a prompt
        share = torch.tensor([random.Random(fold(seed, "prompt", name)).random() for name in batch.ids.tolist()])
        lengths = (share.to(batch.device) * batch.mask.sum(1)).long()
        places = torch.arange(batch.length, device=batch.device)
        return -self.prior_given(batch.targets, batch.mask & (places < lengths[:, None])).log_prob(thoughts)

    def precompute(self, batch: Batch) -> Batch:
        """`batch` with the decoder's `context` computed once, for programs that read it many times without learning.

        The context is cut from the graph: never use it where the decoder is to receive a gradient. With other weights,
        or where a Bayesian decoder draws new ones in each run, it is worked out again.
        """
        if batch.context is not None or draws(self.decoder):
            return batch
        with torch.no_grad():
            context = self.decoder.context(batch.inputs)
        return dataclasses.replace(batch, context=context, context_of=Weights(self.decoder))

    def fused_weights(self) -> AbstractContextManager[None]:
        """`Decoder.fused_weights`, unless the decoder's weights are drawn anew in each run."""
        return nullcontext() if draws(self.decoder) else self.decoder.fused_weights()
