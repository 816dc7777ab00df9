"""Writing tokens: ancestral sampling from the decoder with a cache bounded by its window."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.model.kernels.packed import packed
from pyro_ltm.model.protocol import TokenDecoder

Generators = torch.Generator | Sequence[torch.Generator]
"""One for all rows; or one for each, so that what a row draws does not depend on the others."""
BLOCK = 256


@dataclass(frozen=True, kw_only=True)
class DecodingOptions:
    """How the next token is drawn from its logits.

    Args:
        temperature: divides the logits; 0 takes the most likely token.
        top_k: keeps the k most likely tokens; 0 keeps all.
        top_p: keeps the fewest tokens whose probabilities reach p (arXiv:1904.09751); 1 keeps all.
        diffusion_steps: passes in which a masked diffusion writes a text; 0: one a token. No other model has any.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    diffusion_steps: int = 0

    def __post_init__(self) -> None:
        if not self.temperature >= 0:
            raise UserError(f"temperature = {self.temperature}: must be at least 0 (0: the most likely token)")
        if self.top_k < 0:
            raise UserError(f"top_k = {self.top_k}: must be at least 0 (0: all tokens)")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p = {self.top_p}: must lie above 0 and at most at 1 (1: all tokens)")
        if self.diffusion_steps < 0:
            raise UserError(f"diffusion_steps = {self.diffusion_steps}: must be at least 0 (0: one for each token)")

    def check_in_order(self) -> None:
        """Raises UserError where they ask for passes of a masked diffusion."""
        if self.diffusion_steps:
            raise UserError(
                f"diffusion_steps = {self.diffusion_steps}: this model writes one token after the other; only one of "
                "model.kind = masked-diffusion has such steps"
            )

    def log_probs(self, logits: Tensor) -> Tensor:
        """Log-probabilities [..., V] of what is drawn from; tokens left out have -inf. Needs temperature > 0."""
        return self._filtered(logits).log_softmax(-1)

    def _filtered(self, logits: Tensor) -> Tensor:
        """Logits [..., V] of what is drawn from, the largest 0; tokens left out have -inf."""
        # The largest becomes 0 first, so that no temperature, however small, overflows.
        logits = logits - logits.amax(-1, keepdim=True)
        if self.temperature != 1:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            smallest = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < smallest, float("-inf"))
        if self.top_p < 1:
            ordered, order = logits.softmax(-1).sort(dim=-1, descending=True)
            # A token stays when those before it do not reach p; the first always stays.
            dropped = ordered.cumsum(-1) - ordered >= self.top_p
            logits = logits.masked_fill(dropped.scatter(-1, order, dropped), float("-inf"))
        return logits

    def draw(self, logits: Tensor, generator: Generators | None = None) -> Tensor:
        """One token [B] for each row of `logits` [B, V]."""
        if self.temperature == 0:
            return logits.argmax(-1)
        # One uniform number a row, where `multinomial` draws one for each token of the vocabulary. It finds a block of
        # tokens, then a token in it, so that no sum of the whole row has to be written down.
        probabilities = self._filtered(logits).exp_()
        blocks = F.pad(probabilities, (0, -probabilities.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
        block, rest = _below(blocks.sum(-1).double(), uniform((len(logits),), generator, logits.device))
        within, _ = _below(blocks[torch.arange(len(blocks), device=blocks.device), block].double(), rest)
        return block * BLOCK + within


def uniform(shape: tuple[int, ...], generator: Generators | None, device: torch.device) -> Tensor:
    """Numbers of `shape` [rows, ...] in [0, 1), each row's from its own generator."""
    drawn = torch.empty(shape, dtype=torch.float64, device=device)
    if generator is None or isinstance(generator, torch.Generator):
        return drawn.uniform_(generator=generator)
    for row, own in zip(drawn, generator, strict=True):
        row.uniform_(generator=own)
    return drawn


def _below(weights: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
    """Which of `weights` [B, n], laid end to end in each row, has the share `at` [B] of their sum in it.

    Its number [B], never that of a zero; and the share of it [B] that lies below.
    """
    reached = weights.cumsum(-1)
    # Rounding must not leave the row: the first sum that lies above belongs to a weight that is not zero.
    target = at.clamp(0, 1 - 1e-15)[:, None] * reached[:, -1:]
    index = torch.searchsorted(reached, target, right=True)
    own = weights.gather(1, index)
    share = (target - (reached.gather(1, index) - own)) / own
    return index[:, 0], share[:, 0]


@dataclass(frozen=True)
class Span:
    """The places of the new tokens in each row.

    Attributes:
        begins: tokens of each prompt. totals: tokens of prompt and continuation, at most.
    """

    begins: list[int]
    totals: list[int]

    @classmethod
    def of(cls, prompt: Tensor, new: int | Sequence[int], lengths: Sequence[int] | None, decoder: TokenDecoder) -> Span:
        """`new` tokens after prompts [B, P] of these lengths; None: P. Raises UserError where they do not fit."""
        size, width = prompt.shape
        begins = [width] * size if lengths is None else list(lengths)
        counts = [new] * size if isinstance(new, int) else list(new)
        for begin, count in zip(begins, counts, strict=True):
            check_room(begin, count, decoder.config.max_length)
        return cls(begins, [begin + count for begin, count in zip(begins, counts, strict=True)])


@torch.no_grad()
def sample_tokens(
    decoder: TokenDecoder,
    thoughts: Tensor,
    prompt: Tensor,
    max_new_tokens: int | Sequence[int],
    *,
    lengths: Sequence[int] | None = None,
    sampler: DecodingOptions | None = None,
    end: int | None = None,
    generator: Generators | None = None,
    stop: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Continues each prompt by up to `max_new_tokens` tokens.

    Shapes:
        thoughts: [B, N, D]. prompt: [B, P], P >= 1. Result: [B, P + new].

    Args:
        max_new_tokens: one number for all, or one for each.
        lengths: tokens of each prompt, at least 1, where they are not all P: what follows them in `prompt` is not
            looked at, and row b's new tokens begin at `lengths[b]`. The rows are read together up to the shortest
            one's length, then step by step, so rows of like lengths go together. A row draws nothing before its own
            prompt ends, nor after its last new token; what stands behind that means nothing.
        end: a token that ends a sequence; what follows it is `end` again, and all ended stop early. None: never.
        stop: sees the new tokens so far, [B, 1] to [B, max_new_tokens], and says which sequences need no more, bool
            [B]; when that is all of them, no more are written. For prompts of one length.

    Raises:
        UserError: the prompt and the new tokens do not fit the decoder's length (its T inputs, and the last output).
    """
    check_in_order(decoder)
    span, (size, width) = Span.of(prompt, max_new_tokens, lengths, decoder), prompt.shape
    sampler = sampler or DecodingOptions()
    sampler.check_in_order()
    start, last = min(span.begins), max(span.totals)
    written = [prompt[:, :start]]
    ended = torch.zeros(size, dtype=torch.bool, device=prompt.device)
    # Whose prompt goes on at a place, and who has all its tokens before it: known beforehand.
    given, total = (torch.tensor(each, device=prompt.device) for each in (span.begins, span.totals))
    if start < last:
        hidden, cache = decoder.prefill(written[0], thoughts)
        decoder = packed(decoder, size, last - start)
    for at in range(start, last):
        rows = [row for row, (own, most) in enumerate(zip(span.begins, span.totals, strict=True)) if own <= at < most]
        token = _draw(decoder, hidden, rows, sampler, generator)
        if len(rows) < size:
            token = torch.where(given > at, prompt[:, min(at, width - 1)], token)
        if end is not None:
            token = torch.where(ended, end, token)
            ended |= (token == end) & (given <= at)
        written.append(token[:, None])
        done = ended | (total <= at + 1)
        done = done | stop(torch.cat(written[1:], dim=1)) if stop else done
        if at + 1 == last or bool(done.all()):
            break
        hidden = decoder.step(token, cache)
    return torch.cat(written, dim=1)


def _draw(
    decoder: TokenDecoder, hidden: Tensor, rows: list[int], sampler: DecodingOptions, generator: Generators | None
) -> Tensor:
    """A token [B] for each of `rows` after the hidden states [B, D]; 0 for the others, whose generators rest."""
    if len(rows) == len(hidden):
        return sampler.draw(decoder.logits(hidden), generator)
    token = torch.zeros(len(hidden), dtype=torch.int64, device=hidden.device)
    if rows:
        own = generator if generator is None or isinstance(generator, torch.Generator) else [generator[r] for r in rows]
        token[rows] = sampler.draw(decoder.logits(hidden[rows]), own)
    return token


def check_in_order(decoder: TokenDecoder) -> None:
    """Raises UserError unless the decoder foretells each token from those before it."""
    if getattr(getattr(decoder, "config", None), "is_diffusion", False):  # one of somebody's own need not have any
        raise UserError("this model is a masked diffusion: it does not foretell one token after the other")


def check_room(prompt: int, new: int, longest: int) -> None:
    """Raises UserError where a prompt of so many tokens and the `new` ones do not fit a model's length."""
    if prompt > longest:
        raise UserError(f"the prompt has {prompt} tokens; this model reads at most {longest}")
    if prompt + new > longest + 1:
        raise UserError(
            f"{prompt} tokens of prompt and {new} new ones exceed the model's {longest}: "
            f"ask for at most {longest + 1 - prompt} new tokens"
        )
