"""A causal language model in a local folder, as Hugging Face's `save_pretrained` writes it, as a scorer of texts.

It is exact: nats are -log p of each token after those before it, under the model's own tokenizer.

- Where the tokenizer has a beginning-of-text token, that is put before each text and every token of the text is scored.
  Where it has none, the first token of each text is given and not scored. The end of a text is not scored.
- A text longer than the window (the model's context, at most `WINDOW`) is scored in windows that move by half of their
  length: each token once, and after the first window with at least half a window before it.

Nothing is fetched and no code of the folder is run: local files alone, weights in safetensors alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy

from pyro_ltm.data import Tokenizer as Codec
from pyro_ltm.data.tokenizer.round_trip import RoundTrip
from pyro_ltm.data.tokenizer.safety import open_tokenizer
from pyro_ltm.errors import UserError, one_line
from pyro_ltm.inference.codec import encoded_after
from pyro_ltm.model.pretrained import context_length, load_causal_lm, read_config, read_object
from pyro_ltm.scores.estimate import Figure, perplexity, plain
from pyro_ltm.tasks.written_texts import AfterPrompts

TOKENIZER, TOKENIZER_CONFIG = "tokenizer.json", "tokenizer_config.json"
WINDOW = 2048
"""Tokens that a model reads at once, where its context does not end earlier."""

LOGITS = 1 << 28
"""Numbers in the logits of one batch, at most, but for a single window: 1 GiB in float32."""
TOKENS = 1 << 14
"""Tokens in one batch, at most, but for a single window: with few words it is the layers that take the memory."""


@dataclass(frozen=True, kw_only=True)
class TextFigure(Figure):
    """Exact nats a token of texts.

    Attributes:
        perplexity: exp(nats_per_token), over the tokens of all texts.
        bits_per_byte: total bits / UTF-8 bytes of the texts; NaN where first tokens are given and not scored, or the
            tokens do not determine the texts.
        texts: how many; those without a token to score are among them. windowed: how many were longer than the window.
        start: the token before each text; None where the first token is given.
        window, stride: tokens.
    """

    perplexity: float
    bits_per_byte: float
    texts: int
    windowed: int
    start: str | None
    window: int
    stride: int

    def to_dict(self) -> dict[str, Any]:
        """A plain dictionary for JSON; figures that are not known are None."""
        return plain(self)


@dataclass(frozen=True)
class CausalLM:
    """A causal language model that scores texts; `load` makes one.

    Attributes:
        start: id of the token that is put before each text; None: the first token of the text is given.
        window: tokens that it reads at once.
    """

    folder: Path
    model: Any
    tokenizer: Tokenizer
    start: int | None
    window: int

    is_exact = True

    @classmethod
    def load(cls, folder: Path | str, *, device: str = "cpu", dtype: str | None = None) -> CausalLM:
        """The model in `folder`.

        Args:
            dtype: `float32` (also for None), `bfloat16`, or `auto`, the precision in which its weights are stored.

        Raises:
            UserError: transformers is not installed, or the folder holds no causal language model with its tokenizer,
                or more than local safetensors and transformers' own code would be needed.
        """
        folder = Path(folder)
        config = _config(folder)
        tokenizer = _tokenizer(folder / TOKENIZER)
        model = load_causal_lm(folder, dtype or "float32", extra="scorers").to(device).eval()
        _check_causal(folder, model)
        return cls(folder, model, tokenizer, _start(folder, config, tokenizer), _window(model))

    @property
    def stride(self) -> int:
        """Tokens by which the window moves."""
        return max(self.window // 2, 1)

    @property
    def feature_name(self) -> str:
        """The name of `features`, for people."""
        return (
            f"last hidden state of each text's last token under {self.folder}; published figures are of GPT-2 large's"
        )

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, nothing put before or after it. Raises UserError for what the model lacks."""
        encoded = [one.ids for one in self.tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        last = max(map(max, filter(None, [*encoded, [self.start or 0]])))
        known = self.model.get_input_embeddings().weight.shape[0]
        if last >= known:
            raise UserError(
                f"{self.folder / TOKENIZER}: gives token {last} where the model has {known}: not its own tokenizer"
            )
        return encoded

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> TextFigure:
        """Exact nats of the texts. Raises UserError when there is no token to score, or they are not finite."""
        encoded = [[*self._before, *tokens] for tokens in self.encode(texts)]
        counts = torch.tensor([max(len(tokens) - 1, 0) for tokens in encoded])
        if not int(counts.sum()):
            raise UserError("nothing to score: the texts have no tokens, or no more than the first, which is given")
        nats = self._nats(encoded, [1] * len(encoded))
        return self._figure(nats, counts, texts, windowed=sum(len(tokens) > self.window for tokens in encoded))

    def score_after(self, prompts: Sequence[str], texts: Sequence[str]) -> AfterPrompts:
        """Exact nats of the texts, each after its prompt. Raises UserError as `score` does."""

        def encode(text: str) -> list[int]:
            return self.encode([text])[0]

        both = [encoded_after(encode, prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        given = [max(1, len(self._before) + len(prompt)) for prompt, _ in both]
        nats = self._nats([[*self._before, *prompt, *text] for prompt, text in both], given)
        counts = torch.tensor([len(text) for _, text in both])
        return AfterPrompts.of_texts(nats, counts, texts, self._changed(texts))

    @property
    def _before(self) -> list[int]:
        """The tokens before each text."""
        return [] if self.start is None else [self.start]

    @torch.no_grad()
    def _nats(self, encoded: Sequence[list[int]], given: Sequence[int]) -> Tensor:
        """Nats of each text's tokens after the first `given` of it, at least one: float64 [n]."""
        # Of a window the last tokens are scored, and of these the last that are not given.
        pieces = [
            (row, window, min(scored, end - given[row]))
            for row, tokens in enumerate(encoded)
            for window, scored, end in _pieces(tokens, self)
            if end > given[row]
        ]
        nats = torch.zeros(len(encoded), dtype=torch.float64)
        for rows, ids, mask in self._batches([tokens for _, tokens, _ in pieces]):
            logits = self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            for at, row in enumerate(rows):
                text, tokens, scored = pieces[row]
                end = len(tokens)
                predicted, targets = logits[at, end - scored - 1 : end - 1].float(), ids[at, end - scored : end]
                nats[text] += float(cross_entropy(predicted, targets, reduction="none").cpu().double().sum())
        if not bool(torch.isfinite(nats).all()):
            raise UserError(f"{self.folder}: its nats are not finite: damaged weights, or --dtype is too coarse")
        return nats

    def _figure(self, nats: Tensor, counts: Tensor, texts: Sequence[str], *, windowed: int) -> TextFigure:
        mean, size = float(nats.sum() / counts.sum()), sum(len(text.encode()) for text in texts)
        figure: TextFigure = TextFigure.of(
            nats,
            counts,
            perplexity=perplexity(mean),
            bits_per_byte=math.nan if self.why_no_bytes(texts) else float(nats.sum()) / math.log(2) / size,
            texts=len(texts),
            windowed=windowed,
            start=None if self.start is None else self.tokenizer.id_to_token(self.start),
            window=self.window,
            stride=self.stride,
        )
        return figure

    def why_no_bytes(self, texts: Sequence[str]) -> str:
        """Why there is no figure of the texts by the byte; empty where there is one."""
        if self.start is None:
            return "the first token of each text is given and not scored"
        return self._changed(texts)

    def _changed(self, texts: Sequence[str]) -> str:
        """Whether the tokenizer gives the texts back."""
        codec = Codec(Tokenizer.from_str(self.tokenizer.to_str()))
        return RoundTrip.of(codec, texts, self.encode(texts)).why_no_bytes

    @torch.no_grad()
    def features(self, texts: Sequence[str]) -> Tensor:
        """[n, d] float64: the last layer's hidden state at each text's last token, as MAUVE's authors have it.

        Nothing is put before the text, and it is cut at the window. A text without tokens has zeros. Raises UserError
        when no text has any.
        """
        encoded = [tokens[: self.window] for tokens in self.encode(texts)]
        states: dict[int, Tensor] = {}
        for rows, ids, mask in self._batches(encoded):
            hidden = self.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
            last = hidden[torch.arange(len(rows), device=hidden.device), mask.sum(1) - 1].cpu().double()
            states.update(zip(rows, last, strict=True))
        if not states:
            raise UserError("no features: the texts have no tokens")
        nothing = torch.zeros_like(next(iter(states.values())))
        return torch.stack([states.get(at, nothing) for at in range(len(encoded))])

    def _batches(self, sequences: Sequence[list[int]]) -> Iterator[tuple[list[int], Tensor, Tensor]]:
        """Sequences, those of like length together: their indices, and ids and mask [B, T], padded on the right."""
        order = sorted((at for at, one in enumerate(sequences) if one), key=lambda at: -len(sequences[at]))
        vocab, device = self.model.get_input_embeddings().weight.shape[0], self.model.device
        while order:
            longest = len(sequences[order[0]])
            size = max(min(LOGITS // vocab, TOKENS) // longest, 1)
            rows, order = order[:size], order[size:]
            padded = [sequences[at] + [0] * (longest - len(sequences[at])) for at in rows]
            mask = [[1] * len(sequences[at]) + [0] * (longest - len(sequences[at])) for at in rows]
            yield rows, torch.tensor(padded, device=device), torch.tensor(mask, device=device)


def _pieces(tokens: list[int], reader: CausalLM) -> Iterator[tuple[list[int], int, int]]:
    """Windows, how many tokens at the end of each are scored in it, and where in `tokens` it ends.

    The first token of all is never scored.
    """
    done = 1
    while done < len(tokens):
        end = min(reader.window if done == 1 else done + reader.stride, len(tokens))
        yield tokens[max(end - reader.window, 0) : end], end - done, end
        done = end


def _config(folder: Path) -> dict[str, Any]:
    """The folder's config.json, and a look at what else there is. Raises UserError."""
    config = read_config(folder)
    if not (folder / TOKENIZER).is_file():
        raise UserError(f"{folder}: has no {TOKENIZER}; save the tokenizer there as well (save_pretrained)")
    return config


def _tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in `path`, which neither cuts nor pads. Raises UserError."""
    try:
        tokenizer = open_tokenizer(path)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: not a tokenizer: {one_line(error)}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _start(folder: Path, config: dict[str, Any], tokenizer: Tokenizer) -> int | None:
    """The beginning-of-text token that tokenizer_config.json names; else the model's, where that is a special token.

    GPT-2's own files name it only in config.json. Raises UserError when the tokenizer does not know the token.
    """
    path = folder / TOKENIZER_CONFIG
    named = read_object(path) if path.is_file() else {}
    if "bos_token" not in named:
        added = tokenizer.get_added_tokens_decoder()
        known: Any = config.get("bos_token_id")
        return known if isinstance(known, int) and known in added and added[known].special else None
    token: Any = named["bos_token"]
    token = token.get("content") if isinstance(token, dict) else token
    if token is None:
        return None
    found = tokenizer.token_to_id(str(token))
    if found is None:
        raise UserError(f"{path}: bos_token {token!r} is none of the tokenizer's tokens")
    return int(found)


def _window(model: Any) -> int:
    """Tokens that it reads at once: its context, where its configuration names one, and at most `WINDOW`."""
    return min(context_length(model) or WINDOW, WINDOW)


@torch.no_grad()
def _check_causal(folder: Path, model: Any) -> None:
    """Raises UserError when a token changes what was predicted before it, as in a model of masked text."""
    ids = torch.tensor([[0, 1, 0, 1], [0, 1, 0, 0]], device=model.device)
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
    if float((logits[0] - logits[1]).abs().max()) > 1e-3 * float(logits.abs().max()):
        raise UserError(f"{folder}: {type(model).__name__} is not causal: it reads later tokens")


__all__ = ["CausalLM", "TextFigure"]
