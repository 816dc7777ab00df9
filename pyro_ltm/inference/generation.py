"""Text from thoughts, and thoughts from text.

Generation never looks at more than it was given: thoughts come from the prior, from a posterior fitted on the prompt
alone (or a prior that reads the prompt), or from the caller.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.errors import UserError
from pyro_ltm.inference.codec import Codec, continuation, encode_for
from pyro_ltm.inference.fast_loop import FastLoop
from pyro_ltm.inference.posterior import Posterior
from pyro_ltm.inference.writing import Row, Writer, Written, added
from pyro_ltm.model import DecodingOptions, LatentThoughtModel, sample_tokens
from pyro_ltm.model.sampling import check_room
from pyro_ltm.noise import Noise, draw, fold
from pyro_ltm.priors import reads_prompt
from pyro_ltm.types import Batch


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One text written by a model. `text` leaves the prompt out; `tokens` counts the new ones.

    Attributes:
        ended: the model ended it; otherwise it was cut short.
        drafts: with `Rethinking`, the text of each round, from that without; scores: theirs, by what is kept; kept:
            which of them this is.
    """

    prompt: str
    text: str
    tokens: int
    ended: bool
    drafts: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    kept: int = 0


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


def infer_thoughts(
    model: LatentThoughtModel,
    loop: FastLoop,
    codec: Codec,
    texts: Sequence[str],
    *,
    ids: Sequence[int] | None = None,
    keep_chains: bool = False,
    seed: int = 0,
) -> tuple[Batch, Posterior]:
    """Fits q(z) to each text.

    Args:
        ids: name the texts, for their noise; None: their places. keep_chains: as in `FastLoop.fit`.

    Raises:
        UserError: the model has no thoughts, a text is empty or too long, or the guide has no chains to keep.
    """
    if not model.config.thoughts:
        raise UserError(f"this model has no thoughts ({model.config.no_thoughts}): nothing to infer")
    batch = _batch_of(model, codec, texts, ids)
    return batch, loop.fit_to_score(model, batch, seed=fold(seed, "fit"), keep_chains=keep_chains)


def _batch_of(model: LatentThoughtModel, codec: Codec, texts: Sequence[str], ids: Sequence[int] | None) -> Batch:
    """Texts as the model reads them, on its device. Raises UserError where one is empty or too long."""
    batch = Batch.from_lists([encode_for(model, codec, text) for text in texts], pad=codec.end_of_text)
    return (batch if ids is None else dataclasses.replace(batch, ids=torch.tensor(ids))).to(model.device)


def generate(
    model: LatentThoughtModel,
    loop: FastLoop,
    codec: Codec,
    *,
    prompt: str = "",
    prompts: Sequence[str] | None = None,
    num: int = 1,
    max_new_tokens: int | None = None,
    thoughts: Tensor | None = None,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
    **how: Any,
) -> list[Generated]:
    """Writes `num` texts, after one prompt, after none, or after each of several.

    Without a prompt thoughts come from the prior; with one, from the posterior fitted on the prompt alone, or from a
    prior that reads prompts; `thoughts` [M, N, D], where given, are used instead (and `num` texts are written from
    each).

    Args:
        prompts: of any lengths; the texts come in their order, `num` after each. What is written after a prompt
            depends on the seed, the prompt, and how often it came before, not on the others, but for rounding
            (and at a `batch_size` of 1 to the bit).
        max_new_tokens: at most so many tokens each; None: as many as the model's length allows.
        batch_size: texts at a time; those of one prompt are always written together.
        progress: called with the texts done.
        how: `sampler`, a `DecodingOptions`; `rethinking`, a `Rethinking`: how often thoughts are fitted to what was
            written, and it is written again; `seed`. None: as `Writer` has it.

    Raises:
        UserError: prompt too long, more new tokens than fit, thoughts of another shape, or an empty one among
            `prompts`; of a model without thoughts, also where there is to be rethinking.
    """
    if isinstance(prompts, str):
        raise UserError("prompts: a list of texts; a single one is `prompt`")
    if prompts is not None and (prompt or thoughts is not None):
        raise UserError("several prompts: give neither another prompt nor thoughts beside them")
    if min(num, batch_size) < 1:
        raise UserError(f"num = {num}, batch_size = {batch_size}: at least 1")
    writer = Writer(model, loop, codec, **{name: value for name, value in how.items() if value is not None})
    if prompts is not None:
        asked = _named(writer, prompts, max_new_tokens)
        return [text for texts in _after_each(writer, asked, num, batch_size, progress) for text in texts]
    tokens = encode_for(model, codec, prompt) if prompt else [codec.end_of_text]
    z, room = _thoughts_of(writer, prompt, num, thoughts), _room(model, tokens, max_new_tokens)
    return _written(writer, [Row(tokens, prompt, room, (text,)) for text in range(len(z))], z)


def _after_each(
    writer: Writer, asked: Sequence[Row], num: int, batch_size: int, progress: Callable[[int], None] | None
) -> list[list[Generated]]:
    """The `num` texts after each prompt."""
    found: dict[int, list[Generated]] = {}
    # Those of like lengths together.
    order = sorted(range(len(asked)), key=lambda at: (len(asked[at].prompt), asked[at].key))
    at_a_time = max(1, batch_size // num)
    for places in (order[start : start + at_a_time] for start in range(0, len(order), at_a_time)):
        some = [asked[place] for place in places]
        rows = [dataclasses.replace(row, key=(*row.key, text)) for row in some for text in range(num)]
        new = _written(writer, rows, _thoughts_of_all(writer, some, num))
        found |= {place: new[at * num : (at + 1) * num] for at, place in enumerate(places)}
        if progress:
            progress(len(found) * num)
    return [found[place] for place in range(len(asked))]


def _written(writer: Writer, rows: Sequence[Row], thoughts: Tensor) -> list[Generated]:
    """The texts of rows, from these thoughts [B, N, D]."""
    return [_generated(writer.codec, row, one) for row, one in zip(rows, writer.write(rows, thoughts), strict=True)]


def _named(writer: Writer, prompts: Sequence[str], new: int | None) -> list[Row]:
    """The prompts as rows, each named by its text and how often that came before. Raises UserError with its number."""
    seen: Counter[str] = Counter()
    rows = []
    for number, text in enumerate(prompts, 1):
        try:
            tokens, room = room_after(writer.model, writer.codec, text, new)
        except UserError as error:
            raise UserError(f"prompt {number}: {error}") from None
        rows.append(Row(tokens, text, room, (fold("prompt", text, seen[text]),)))
        seen[text] += 1
    return rows


def room_after(model: LatentThoughtModel, codec: Codec, text: str, new: int | None) -> tuple[list[int], int]:
    """The tokens of a prompt that a model reads, and how many may follow: `new`, or as many as its length allows.

    Raises:
        UserError: the prompt is empty or too long, or so many `new` tokens do not fit after it.
    """
    tokens = encode_for(model, codec, text)
    return tokens, _room(model, tokens, new)


def _room(model: LatentThoughtModel, tokens: Sequence[int], new: int | None) -> int:
    longest = model.config.max_length
    if new is None:
        return longest + 1 - len(tokens)
    check_room(len(tokens), new, longest)
    return new


def _thoughts_of(writer: Writer, prompt: str, num: int, thoughts: Tensor | None) -> Tensor:
    """Thoughts of the first texts after one prompt, or after none: [B, N, D]."""
    model, seed = writer.model, writer.seed
    if thoughts is not None:
        return _check_thoughts(model, thoughts).repeat_interleave(num, 0)
    if prompt and model.config.thoughts:
        return _thoughts_after(writer, [prompt], None, num)[:, 0]
    with torch.no_grad():
        noise = Noise(torch.arange(num), seed=fold(seed, "prior"), device=model.device)
        return draw(model.prior().expand(torch.Size([num])), noise)


def _thoughts_of_all(writer: Writer, prompts: Sequence[Row], num: int) -> Tensor:
    """Thoughts of `num` texts after each prompt, those of a prompt together: [B, N, D]."""
    model = writer.model
    if not model.config.thoughts:
        return torch.zeros(len(prompts) * num, 0, model.config.thought_width, device=model.device)
    texts, ids = [row.text for row in prompts], [row.key[0] for row in prompts]
    return _thoughts_after(writer, texts, ids, num).transpose(0, 1).flatten(0, 1)


@torch.no_grad()
def _thoughts_after(writer: Writer, prompts: Sequence[str], ids: Sequence[int] | None, num: int) -> Tensor:
    """Draws [num, P, N, D] given each of P prompts: from a prior that reads them, else from their posteriors."""
    model, seed = writer.model, writer.seed
    if reads_prompt(model):
        batch = _batch_of(model, writer.codec, prompts, ids)
        assert batch.targets is not None
        planned = model.prior_given(batch.targets, batch.mask).expand(torch.Size([num, batch.size]))
        return draw(planned, Noise(batch.ids, seed=fold(seed, "draw"), device=model.device))
    _, posterior = infer_thoughts(model, writer.loop, writer.codec, prompts, ids=ids, seed=seed)
    return posterior.with_noise(fold(seed, "draw")).sample(num)


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
    wanted = (model.config.thoughts, model.config.thought_width)
    if thoughts.dim() != 3 or tuple(thoughts.shape[1:]) != wanted:
        raise UserError(
            f"thoughts of shape {list(thoughts.shape)}: this model needs [sequences, {wanted[0]}, {wanted[1]}]"
        )
    return thoughts.to(model.device, torch.float32)


def _generated(codec: Codec, row: Row, written: Written) -> Generated:
    ended = codec.end_of_text in written.tokens
    return Generated(
        prompt=row.text,
        text=added(codec, row, written),
        tokens=len(written.tokens) - ended,
        ended=ended,
        drafts=tuple(added(codec, row, draft) for draft in written.drafts),
        scores=written.scores,
        kept=written.kept,
    )
