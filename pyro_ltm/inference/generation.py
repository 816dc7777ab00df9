"""Text from thoughts, and thoughts from text.

Generation never looks at more than it was given: thoughts come from the prior, from a posterior fitted on the prompt
alone, or from the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.inference.fast_loop import FastLoop
from pyro_ltm.inference.posterior import Posterior
from pyro_ltm.model import DecodingOptions, LatentThoughtModel, sample_tokens
from pyro_ltm.noise import Noise, fold
from pyro_ltm.types import Batch

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""Character that decoders write for bytes that are none."""


class Codec(Protocol):
    """The part of a tokenizer that generation uses."""

    @property
    def end_of_text(self) -> int:
        """The token that begins and ends documents."""

    def encode(self, text: str) -> list[int]:
        """Tokens of a text."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of tokens."""


def continuation(codec: Codec, before: Sequence[int], new: Sequence[int]) -> str:
    """The text that the tokens `new` add to that of `before`.

    Decoded alone they may read otherwise: tokenizers that put a space before each word drop the first one, and a
    character may have bytes on both sides. Such a character belongs to what is new.
    """
    shown = [token for token in before if token != codec.end_of_text]
    start, whole = codec.decode(shown), codec.decode([*shown, *new])
    if not whole.startswith(start) and not start.endswith(INCOMPLETE):
        return codec.decode(new)  # bytes of no character, which some decoders let spoil those before them
    while not whole.startswith(start):
        start = start[:-1]
    return whole[len(start) :]


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One text written by a model. `text` leaves the prompt out; `tokens` counts the new ones."""

    prompt: str
    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A text written again from its own thoughts.

    Attributes:
        token_accuracy: share of positions at which the text written from thoughts alone has the original's token.
        teacher_forced_accuracy: share of tokens that are the likeliest given the true ones before and the thoughts.
        nats_per_token, kl_nats: distortion a token on fresh noise, and the rate of the sequence.
    """

    original: str
    text: str
    tokens: int
    token_accuracy: float
    teacher_forced_accuracy: float
    nats_per_token: float
    kl_nats: float


def encode_for(model: LatentThoughtModel, codec: Codec, text: str) -> list[int]:
    """End-of-text and the tokens of `text`: what a model reads. Raises UserError when it is empty or too long."""
    tokens = [codec.end_of_text, *codec.encode(text)]
    longest = model.config.max_length
    if len(tokens) < 2:
        raise UserError("the text is empty: give at least one character")
    if len(tokens) > longest:
        raise UserError(f"the text has {len(tokens) - 1} tokens; this model reads at most {longest - 1}: shorten it")
    return tokens


def infer_thoughts(
    model: LatentThoughtModel, loop: FastLoop, codec: Codec, texts: Sequence[str], *, seed: int = 0
) -> tuple[Batch, Posterior]:
    """Fits q(z) to each text.

    Raises:
        UserError: the model has no thoughts, or a text is empty or too long.
    """
    if not model.config.thoughts:
        raise UserError("this model has no thoughts (it is an autoregressive twin): nothing to infer")
    sequences = [encode_for(model, codec, text) for text in texts]
    batch = Batch.from_lists(sequences, pad=codec.end_of_text).to(model.device)
    return batch, loop.fit_to_score(model, batch, seed=fold(seed, "fit"))


def generate(
    model: LatentThoughtModel,
    loop: FastLoop,
    codec: Codec,
    *,
    prompt: str = "",
    num: int = 1,
    max_new_tokens: int | None = None,
    thoughts: Tensor | None = None,
    sampler: DecodingOptions | None = None,
    seed: int = 0,
) -> list[Generated]:
    """Writes `num` texts.

    Without a prompt thoughts come from the prior; with one, from the posterior fitted on the prompt alone; `thoughts`
    [M, N, D], where given, are used instead (and `num` texts are written from each).

    Args:
        max_new_tokens: at most so many tokens each; None: as many as the model's length allows.

    Raises:
        UserError: prompt too long, more new tokens than fit, or thoughts of another shape.
    """
    tokens = encode_for(model, codec, prompt) if prompt else [codec.end_of_text]
    room = model.config.max_length + 1 - len(tokens)
    count = num
    if thoughts is not None:
        z = _check_thoughts(model, thoughts).repeat_interleave(num, 0)
        count = len(z)
    elif prompt and model.config.thoughts:
        _, posterior = infer_thoughts(model, loop, codec, [prompt], seed=seed)
        z = posterior.with_noise(fold(seed, "draw")).sample(num)[:, 0]
    else:
        shape = torch.Size([num, model.config.thoughts, model.config.dim])
        z = Noise(torch.arange(num), seed=fold(seed, "prior")).normal(shape, event_dims=2).to(model.device)
    # One for each text, so that a text is the same however many are written beside it.
    generators = [torch.Generator(model.device).manual_seed(fold(seed, "tokens", text)) for text in range(count)]
    written = sample_tokens(
        model.decoder,
        z,
        torch.tensor([tokens] * count, device=model.device),
        room if max_new_tokens is None else max_new_tokens,
        sampler=sampler,
        end=codec.end_of_text,
        generator=generators,
    )
    return [_generated(codec, prompt, tokens, row[len(tokens) :]) for row in written.tolist()]


def reconstruct(model: LatentThoughtModel, loop: FastLoop, codec: Codec, text: str, *, seed: int = 0) -> Reconstruction:
    """Fits thoughts to `text`, then writes it again from the thoughts alone, the likeliest token each time.

    Raises:
        UserError: the model has no thoughts, or the text is empty or too long.
    """
    batch, fitted = infer_thoughts(model, loop, codec, [text], seed=seed)
    z = fitted.with_noise(fold(seed, "draw")).sample()[0]
    targets = batch.targets
    assert targets is not None
    with torch.no_grad():
        written = sample_tokens(
            model.decoder, z, batch.inputs[:, :1], batch.length, sampler=DecodingOptions(temperature=0)
        )[:, 1:]
        hidden = model.decoder(model.decoder.context(batch.inputs), z)
        likeliest = model.decoder.logits(hidden).argmax(-1)
        terms = fitted.with_noise(fold(seed, "score")).score(model, batch)
        return Reconstruction(
            original=text,
            text=continuation(codec, [codec.end_of_text], written[0].tolist()),
            tokens=batch.length,
            token_accuracy=float((written == targets).float().mean()),
            teacher_forced_accuracy=float((likeliest == targets).float().mean()),
            nats_per_token=terms.distortion.item() / batch.length,
            kl_nats=terms.rate.item(),
        )


def _check_thoughts(model: LatentThoughtModel, thoughts: Tensor) -> Tensor:
    wanted = (model.config.thoughts, model.config.dim)
    if thoughts.dim() != 3 or tuple(thoughts.shape[1:]) != wanted:
        raise UserError(
            f"thoughts of shape {list(thoughts.shape)}: this model needs [sequences, {wanted[0]}, {wanted[1]}]"
        )
    return thoughts.to(model.device, torch.float32)


def _generated(codec: Codec, prompt: str, tokens: list[int], new: list[int]) -> Generated:
    ended = codec.end_of_text in new
    written = new[: new.index(codec.end_of_text)] if ended else new
    return Generated(prompt=prompt, text=continuation(codec, tokens, written), tokens=len(written), ended=ended)
