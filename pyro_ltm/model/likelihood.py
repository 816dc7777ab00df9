"""The token likelihood as a Pyro distribution: p(tokens | first input, thoughts)."""

from __future__ import annotations

from typing import Any, ClassVar, cast

import torch
from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_ltm.model.protocol import TokenDecoder
from pyro_ltm.model.sampling import check_in_order, sample_tokens
from pyro_ltm.types import Batch
from pyro_ltm.weights import Weights


class TokenSequence(TorchDistribution):
    """A sequence of tokens, each drawn by the decoder from those before it and the thoughts.

    `log_prob` reads a whole sequence at once; `sample` writes one token after the other. Tokens outside the batch's
    mask are written but count nothing. Both are by the decoder's weights as they are when this is made, as a rule when
    the program runs: those that `torch.func.functional_call` put there, or that a `PyroSample` drew.

    Shapes:
        thoughts: [..., B, N, D]. Batch shape [..., B], event shape [T].
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)
    has_rsample = False

    def __init__(
        self,
        decoder: TokenDecoder,
        thoughts: Tensor,
        batch: Batch,
        validate_args: bool | None = None,
        weights: Weights | None = None,
    ):
        self.decoder = decoder
        self.weights = weights or Weights(decoder)
        self.thoughts = thoughts
        self.batch = batch
        super().__init__(thoughts.shape[:-2], batch.mask.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> TokenSequence:
        """The same distribution over more sequences, `batch_shape` [..., B]."""
        shape = torch.Size(batch_shape)
        if shape == self.batch_shape:
            return self
        thoughts = self.thoughts.expand(*shape, *self.thoughts.shape[-2:])
        return type(self)(self.decoder, thoughts, self.batch, weights=self.weights)

    def log_prob(self, value: Tensor) -> Tensor:
        """Nats [..., B] of the tokens `value` [..., B, T], summed over the tokens that count.

        Where the batch names a slice of the tokens, the decoder works for it alone, and the sum is an estimate.
        """
        token_slice = self.batch.token_slice
        if token_slice is None:
            return (self.token_log_probs(value) * self.batch.mask).sum(-1)
        counted = self._log_probs(value, token_slice) * self.batch.mask[..., token_slice]
        return counted.sum(-1) * self.batch.token_scale

    def token_log_probs(self, value: Tensor) -> Tensor:
        """Nats of each token, [..., B, T], whether it counts or not."""
        return self._log_probs(value, None)

    def _log_probs(self, value: Tensor, token_slice: slice | None) -> Tensor:
        """Nats of the P tokens in `token_slice`, [..., B, P]; of all without."""
        decoder, shape = self._bound_decoder(), torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        check_in_order(decoder)
        mask = None if self.batch.dropout is None else decoder.dropout_mask(self.batch)
        inputs = (flat(self._context(decoder, value, mask), shape, 2), flat(self.thoughts, shape, 2))
        if token_slice is None:
            dropping = {} if mask is None else {"mask": flat(mask.transpose(0, 1), shape, 3).transpose(0, 1)}
            hidden = decoder(*inputs, **dropping)
        else:
            hidden, value = decoder.forward_slice(*inputs, token_slice), value[..., token_slice]
        log_probs = decoder.token_log_probs(hidden.flatten(0, -2), flat(value, shape, 1).flatten())
        return log_probs.view(*shape, -1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Tokens [*sample_shape, ..., B, T], written one after the other from the first inputs."""
        shape = torch.Size(sample_shape) + self.batch_shape
        start = flat(self.batch.inputs[:, :1], shape, 1)
        tokens = sample_tokens(self._bound_decoder(), flat(self.thoughts, shape, 2), start, self.event_shape[0])
        return tokens[:, 1:].view(*shape, -1)

    def _bound_decoder(self) -> TokenDecoder:
        """The decoder, with the weights that it had when this was made."""
        decoder = cast(TokenDecoder, self.weights.module())
        if decoder is not self.decoder:
            decoder.drop_fused_weights()  # they are of other weights
        return decoder

    def _context(self, decoder: TokenDecoder, value: Tensor, mask: Tensor | None) -> Tensor:
        """Its context [..., B, T, D] of `value`: the batch's own, if that is of these tokens by these weights."""
        context, of = self.batch.context, self.batch.context_of
        held = context is not None and of is not None and self.weights.same_as(of)
        if context is not None and held and mask is None and value is self.batch.targets:
            return context
        start = self.batch.inputs[:, :1].expand(*value.shape[:-1], 1)
        inputs = torch.cat([start, value[..., :-1]], dim=-1)
        dropping = {} if mask is None else {"mask": mask}
        return decoder.context(inputs.flatten(0, -2), **dropping).unflatten(0, inputs.shape[:-1])


def flat(x: Tensor, shape: torch.Size, event_dims: int) -> Tensor:
    """`x` [..., event] expanded to [*shape, event], its leading dimensions made one."""
    event = x.shape[x.dim() - event_dims :]
    # The leading size is spelled out: without thoughts there are no elements to infer it from.
    return x.expand(*shape, *event).reshape(shape.numel(), *event)
