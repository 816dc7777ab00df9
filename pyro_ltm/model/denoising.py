"""Writing tokens in any order: ancestral sampling from a masked diffusion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_ltm.model.protocol import TokenDecoder
from pyro_ltm.model.sampling import DecodingOptions, Generators, Span, uniform


@torch.no_grad()
def denoise(
    decoder: TokenDecoder,
    prompt: Tensor,
    max_new_tokens: int | Sequence[int],
    *,
    lengths: Sequence[int] | None = None,
    sampler: DecodingOptions | None = None,
    end: int | None = None,
    generator: Generators | None = None,
) -> Tensor:
    """Continues each prompt by `max_new_tokens` tokens, all hidden at first, in an order drawn for each.

    Each of `sampler.diffusion_steps` passes writes an equal share of the tokens, each from its own distribution given
    what was written before the pass. With one token a pass, texts have the law that the bound is of; fewer passes take
    the tokens of one for independent.

    Shapes and arguments: as of `sample_tokens`; prompts are kept. A text has room for as many tokens as it may get, and
    reads nothing of other rows' lengths. Once all before a text's `end` is written, nothing more is.

    Raises:
        UserError: the prompt and the new tokens do not fit the decoder's length.
    """
    span, (size, width) = Span.of(prompt, max_new_tokens, lengths, decoder), prompt.shape
    written = prompt.new_full((size, max(span.totals)), 0 if end is None else end)
    with decoder.fused_weights():
        for total in sorted(set(span.totals)):  # rows of one length are read together
            rows = [row for row, own in enumerate(span.totals) if own == total]
            texts = torch.cat([prompt[rows], prompt.new_zeros(len(rows), max(0, total - width))], dim=1)[:, :total]
            canvas = _Canvas(texts, [span.begins[row] for row in rows], _of(generator, rows))
            written[rows, :total] = canvas.write(decoder, sampler or DecodingOptions(), end)
    return written


def _of(generators: Generators | None, rows: Sequence[int]) -> Generators | None:
    """Those of the `rows`; one for all rows is theirs, too."""
    if generators is None or isinstance(generators, torch.Generator):
        return generators
    return [generators[row] for row in rows]


class _Canvas:
    """Texts of one length that are being written.

    Shapes:
        tokens: [B, P], the prompt and what is written of the rest.
        rank: [B, P] int64, 0 for the token that is written last; below 0 in the prompts.
        new: [B, 1] tokens to write.
    """

    def __init__(self, tokens: Tensor, begins: Sequence[int], generator: Generators | None):
        self.tokens, self.generator = tokens, generator
        begin = torch.tensor(begins, device=tokens.device)[:, None]
        given = torch.arange(tokens.shape[1], device=tokens.device) < begin
        order = uniform(tuple(tokens.shape), generator, tokens.device).masked_fill(given, -1.0)
        self.rank = order.argsort(1).argsort(1) - begin
        self.new = tokens.shape[1] - begin

    def write(self, decoder: TokenDecoder, sampler: DecodingOptions, end: int | None) -> Tensor:
        """The whole texts [B, P]; what follows `end` is `end` again."""
        most = sampler.diffusion_steps or int(self.new.max())
        steps = self.new.clamp(max=most)
        for step in range(int(steps.max())):
            # How many are hidden before this pass and after it, rounded up; rows of fewer passes are ready before.
            before, after = (-(-self.new * (steps - at).clamp(min=0) // steps.clamp(min=1)) for at in (step, step + 1))
            self._pass(decoder, sampler, before, after)
            if end is not None and bool(self._is_whole(end, after).all()):
                break
        return self.tokens if end is None else torch.where(self._is_behind(end), end, self.tokens)

    def _hidden(self, number: Tensor) -> Tensor:
        """Where the last `number` [B, 1] tokens are that are written, bool [B, P]."""
        return (self.rank >= 0) & (self.rank < number)

    def _pass(self, decoder: TokenDecoder, sampler: DecodingOptions, before: Tensor, after: Tensor) -> None:
        """Writes what is hidden of `before` [B, 1] tokens, and is not of `after`."""
        seen = self.tokens.masked_fill(self._hidden(before), decoder.config.vocab_size)
        rows, places = (self._hidden(before) & (self.rank >= after)).nonzero(as_tuple=True)
        logits = decoder.logits(decoder(decoder.context(seen), None)[rows, places])
        self.tokens[rows, places] = sampler.draw(logits, _of(self.generator, rows.tolist()))

    def _is_whole(self, end: int, number: Tensor) -> Tensor:
        """Whether all up to a text's first `end` is written, where `number` [B, 1] tokens are not: bool [B]."""
        hidden = self._hidden(number)
        ends = (self.tokens == end) & (self.rank >= number)
        return (ends & (hidden.cumsum(1) == 0)).any(1) | ~hidden.any(1)

    def _is_behind(self, end: int) -> Tensor:
        """Which tokens follow a first `end` that is written, bool [B, P]."""
        ends = ((self.tokens == end) & (self.rank >= 0)).long()
        return ends.cumsum(1) > ends
