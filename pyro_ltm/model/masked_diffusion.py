"""Masked diffusion: tokens are hidden at random and foretold from those that are left, in any order.

The continuous-time bound with the linear schedule (MDLM, arXiv:2406.07524; SEDD's absorbing case, arXiv:2310.16834): at
time t each token is hidden with probability t, and

    -log p(x) <= E_t,hidden [1/t sum over hidden tokens of -log p(token | tokens that are left)],   t uniform on (0, 1].

Which of L tokens are hidden depends on t by their number alone, so that the time is integrated out exactly:
ceil(t L) of them are hidden, evenly drawn, and weigh L / ceil(t L). The expectation is the same (it is that over all
orders in which the tokens may be written, arXiv:2110.02037), the weights are bounded, and at L = 1 it is exact.

What is scored is what the autoregressive twin scores, in nats a token of the same targets: the first input is given to
both, and is never hidden. The decoder reads it and the T targets behind it, so T + 1 tokens, and the hidden state at a
target foretells it. That is MDLM's SUBS parametrization: what is not hidden stays as it is, no time is read, and no
probability goes to the token that hides. Attention reaches as far forth as the twin's reaches back.

Of what lies behind the last target that counts, nothing may be told to the decoder for free. Where it says that the
text has ended (`Batch.padding_is_end`), the autoregressive twin pays for the end when it comes, but a decoder that sees
how many tokens are hidden knows it: so the padding is foretold as well, as end-of-text, and its nats are the text's.
Else it stays hidden, and costs nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.model.denoising import denoise
from pyro_ltm.model.likelihood import TokenSequence, flat
from pyro_ltm.model.program import LatentThoughtModel
from pyro_ltm.noise import fold
from pyro_ltm.types import Batch
from pyro_ltm.weights import Weights


class MaskedDiffusion(LatentThoughtModel):
    """The second rival of a model with thoughts: its decoder without thoughts and without the causal mask.

    The same program, whose site `thoughts` is empty. The log-probability of its site `tokens` is an estimate of a lower
    bound (see the module), by noise that the batch names: it is on average no more than the evidence.
    """

    def likelihood(self, thoughts: Tensor, batch: Batch, weights: Weights | None = None) -> TokenSequence:
        """The tokens, by their bound."""
        return MaskedSequence(self.decoder, thoughts, batch, weights=weights)

    def write(self, thoughts: Tensor, prompt: Tensor, max_new_tokens: int | Sequence[int], **how: Any) -> Tensor:
        """Continues each prompt [B, P]: see `denoise`, which takes the rest."""
        return denoise(self.decoder, prompt, max_new_tokens, **how)

    def precompute(self, batch: Batch) -> Batch:
        """`batch` as it is: each pass reads other tokens."""
        return batch

    def log_prob_without_thoughts(self, batch: Batch) -> Tensor:
        """Nats [B] of the batch's tokens: the estimate of their bound."""
        assert batch.targets is not None  # only known tokens have a probability
        none = torch.zeros(batch.size, 0, self.config.thought_width, device=batch.device)
        return self.likelihood(none, batch).log_prob(batch.targets)


class MaskedSequence(TokenSequence):
    """A sequence of tokens, each foretold by the decoder from those that are not hidden.

    `log_prob` estimates the bound; `sample` writes in as many passes as there are tokens, which is the law that the
    bound is of.
    """

    def log_prob(self, value: Tensor) -> Tensor:
        """[..., B] estimate of the lower bound on the nats of the tokens `value` [..., B, T].

        Where the batch names a slice of the tokens, of theirs given those before it, and those after it stay hidden.
        """
        shape = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        draws = list(hide(self.batch))
        total: Tensor = sum((self._estimate(value, shape, drawn) for drawn in draws), value.new_zeros(()))
        return total / len(draws)

    def token_log_probs(self, value: Tensor) -> Tensor:
        """Raises UserError: a token by itself has no bound."""
        raise UserError("a masked diffusion has a bound on whole sequences, and none of each token by itself")

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Tokens [*sample_shape, ..., B, T], written in an order drawn for each sequence."""
        shape = torch.Size(sample_shape) + self.batch_shape
        tokens = denoise(self._bound_decoder(), flat(self.batch.inputs[:, :1], shape, 1), self.event_shape[0])
        return tokens[:, 1:].view(*shape, -1)

    def _estimate(self, value: Tensor, shape: torch.Size, drawn: Hidden) -> Tensor:
        """[..., B] the bound by one draw of what is hidden."""
        decoder, device = self._bound_decoder(), value.device
        tokens, start = flat(value, shape, 1), flat(self.batch.inputs[:, :1], shape, 1)
        hidden, foretold = (flat(each, shape, 1) for each in (drawn.hidden, drawn.foretold))
        # Found on the host, which drew them: a device would have to be waited for.
        rows, places = (index.to(device, non_blocking=True) for index in foretold.nonzero(as_tuple=True))
        seen = tokens.masked_fill(hidden.to(device, non_blocking=True), decoder.config.vocab_size)
        mask = None if self.batch.dropout is None else decoder.dropout_mask(self.batch)
        dropping = {} if mask is None else {"mask": flat(mask.transpose(0, 1), shape, 3).transpose(0, 1)}
        states = decoder(decoder.context(torch.cat([start, seen], dim=1), **dropping), None, **dropping)
        nats = decoder.token_log_probs(states[rows, 1 + places], tokens[rows, places])
        weight = flat(drawn.weight[:, None], shape, 1).flatten().to(device, nats.dtype, non_blocking=True)
        return nats.new_zeros(shape.numel()).index_add(0, rows, nats * weight[rows]).view(shape)


@dataclass(frozen=True)
class Hidden:
    """A draw of what the decoder does not see.

    Shapes:
        hidden: [B, T] bool. foretold: [B, T] bool, those of them whose nats count. weight: [B], how often they do.
    """

    hidden: Tensor
    foretold: Tensor
    weight: Tensor


def hide(batch: Batch) -> Iterator[Hidden]:
    """The draws by which a batch is scored, on the CPU.

    Times are stratified: those of a sequence's K draws, so that its score does not depend on its batch; or, in a slow
    step, those of all its sequences, each of which has every stratum with the same probability.
    """
    scored, given = scored_and_given(batch)
    if batch.dropout is None:
        seed, draws = batch.hiding or (0, 1)
        strata, count = torch.arange(draws).expand(batch.size, -1), draws
    else:
        seed, draws, count = batch.dropout, 1, batch.step_size or batch.size
        places = torch.arange(count) if batch.step_places is None else batch.step_places
        strata = ((places + random.Random(fold(seed, "strata")).randrange(count)) % count)[:, None]
    generators = [torch.Generator().manual_seed(fold(seed, "hide", name)) for name in batch.ids.tolist()]
    times = torch.stack([torch.rand(draws, generator=own, dtype=torch.float64) for own in generators])
    times = (strata + 1 - times) / count  # in (0, 1]
    lengths = scored.sum(1)
    for time in times.unbind(1):
        order = torch.stack([torch.randperm(batch.length, generator=own) for own in generators])
        # Places that are not scored come last.
        rank = order.masked_fill(~scored, batch.length).argsort(1).argsort(1)
        number = (time * lengths).ceil().long().clamp(min=1)
        foretold = scored & (rank < number[:, None])
        yield Hidden(foretold | ~(scored | given), foretold, lengths / number)


def scored_and_given(batch: Batch) -> tuple[Tensor, Tensor]:
    """Targets whose nats are those of the text, and those that are given, bool [B, T] each on the CPU.

    The first are all that count, and where padding says that the text has ended, the padding, too: of sequences that
    have not ended before the slice.
    """
    where = batch.token_slice or slice(0, batch.length)
    places = torch.arange(batch.length)
    within, counted = (places >= where.start) & (places < where.stop), batch.mask.cpu()
    if batch.padding_is_end:
        counted = (counted & within).any(1, keepdim=True).expand_as(counted)
    return counted & within, (places < where.start).expand_as(counted)
