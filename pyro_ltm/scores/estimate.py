"""A figure of a corpus: total nats over total tokens, its standard error, and what differences need.

Errors honour that neighbours in a text depend on one another: see `dependence`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from pyro_ltm.distributed import team
from pyro_ltm.errors import RanAway, UserError
from pyro_ltm.reading import LARGEST
from pyro_ltm.scores.dependence import Blocks, Places, error_of_sum
from pyro_ltm.types import Batch

Count = Callable[[int, float], None]
"""Called with the sequences done and the nats a token so far."""


def perplexity(nats: float) -> float:
    """exp(nats); infinite near `LARGEST` and beyond it, as no file of figures could be read again that holds it."""
    return math.inf if nats > LOG_LARGEST else math.exp(nats)


LOG_LARGEST = math.log(LARGEST) - 0.1

F = TypeVar("F", bound="Figure")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """Nats a token of S sequences.

    Attributes:
        nats_per_token: total nats / total tokens. nats_per_token_stderr: its standard error; NaN for one sequence.
        blocks: over what the error was taken.
        tokens: how many were scored.
        sequence_nats, sequence_tokens: float64 [S], of each sequence; places: where they stand in their text, None for
            independent texts. Not in `plain`.
    """

    nats_per_token: float
    nats_per_token_stderr: float
    blocks: Blocks
    tokens: int
    sequence_nats: Tensor = field(repr=False, compare=False)
    sequence_tokens: Tensor = field(repr=False, compare=False)
    places: Places | None = field(repr=False, compare=False)

    def __repr__(self) -> str:
        return described(self, [])

    @classmethod
    def of(cls: type[F], nats: Tensor, tokens: Tensor, places: Places | None = None, **more: Any) -> F:
        """The figure of sequences whose nats and tokens are [S]; without `places` they are independent texts."""
        nats, tokens = nats.double().cpu(), tokens.double().cpu()
        total, error = float(tokens.sum()), ratio_error(nats, tokens, places)
        return cls(
            nats_per_token=float(nats.sum()) / total if total else math.nan,
            nats_per_token_stderr=error.stderr,
            blocks=error.blocks,
            tokens=int(total),
            sequence_nats=nats,
            sequence_tokens=tokens,
            places=places,
            **more,
        )


@dataclass
class Tally:
    """Nats, tokens and places of the sequences scored so far.

    Args:
        progress: called after each batch.
    """

    progress: Count | None = None
    _nats: list[Tensor] = field(default_factory=list)
    _tokens: list[Tensor] = field(default_factory=list)
    _places: list[Places] = field(default_factory=list)

    def add(self, batch: Batch, nats: Tensor) -> None:
        """Takes in the nats [B] of a batch."""
        self._nats.append(nats.double().cpu())
        self._tokens.append(batch.mask.sum(-1).cpu())
        self._places.append(Places.of(batch))
        if self.progress:
            done = torch.cat(self._nats)
            self.progress(len(done), float(done.sum() / torch.cat(self._tokens).sum()))

    def whole(self) -> tuple[Tensor, Tensor, Places]:
        """Of all sequences: nats and tokens, float64 [S], and places. Raises UserError where there are none.

        Those of other processes are among them, where several share what is scored (`distributed.sharing`).
        """
        nats, tokens = team().gather(self._nats), team().gather(self._tokens)
        if not nats:
            raise UserError("nothing to score: no sequences")
        return torch.cat(nats), torch.cat(tokens).double(), Places.joined(team().gather(self._places))

    def figure(self, kind: type[F], name: str, **more: Any) -> F:
        """The figure of all sequences. Raises UserError where there are none, or where it is not finite."""
        nats, tokens, places = self.whole()
        if not math.isfinite(float(nats.sum())):
            raise RanAway(f"the {name} is not finite: the model's weights, or its posterior's, have run away")
        return kind.of(nats, tokens, places, **more)


@dataclass(frozen=True)
class Error:
    """A standard error, NaN where it is not known, and over what it was taken."""

    stderr: float
    blocks: Blocks


@dataclass(frozen=True)
class Difference:
    """How many nats a token one figure lies below another on the same tokens, with the paired standard error."""

    nats_per_token: float
    stderr: float
    blocks: Blocks


def difference(higher: Tensor, lower: Tensor, tokens: Tensor, places: Places | None) -> Difference:
    """(sum(higher) - sum(lower)) / sum(tokens) of nats [S] of the same sequences, paired; `places` as in `Figure`.

    The blocks are chosen for the difference itself, which may depend less on its neighbours than either figure does.
    """
    gap = higher.double() - lower.double()
    error = ratio_error(gap, tokens, places)
    return Difference(float(gap.sum() / tokens.sum()), error.stderr, error.blocks)


@dataclass(frozen=True)
class Share:
    """Share that one distance has of another, with its standard error."""

    share: float
    stderr: float
    blocks: Blocks


def share(part: Tensor, whole: Tensor, places: Places | None) -> Share:
    """sum(part) / sum(whole) of nats [S] of the same sequences; `places` as in `Figure`."""
    error = ratio_error(part, whole, places)
    return Share(float(part.double().sum() / whole.double().sum()), error.stderr, error.blocks)


def ratio_error(nats: Tensor, tokens: Tensor, places: Places | None) -> Error:
    """Standard error of sum(nats) / sum(tokens) over sequences [S] (linearized ratio); NaN where one alone has any."""
    nats, tokens = nats.double(), tokens.double()
    if (some := int(((nats != 0) | (tokens != 0)).sum())) < 2:
        return Error(math.nan, Blocks(some, 1, "sequences", some))
    total = tokens.sum()
    error, blocks = error_of_sum(nats - tokens * (nats.sum() / total), tokens, places)
    return Error(error / abs(float(total)), blocks)


def mean_error(values: Tensor, places: Places | None) -> Error:
    """Standard error of the mean of one value a sequence, [S]."""
    return ratio_error(values, torch.ones_like(values), places)


def with_error(value: float, stderr: float) -> str:
    """`3.912 ± 0.031`; without the error where that is not known."""
    return f"{value:.4g}" if math.isnan(stderr) else f"{value:.4f} ± {stderr:.4f}"


def described(figure: Any, more: Sequence[str]) -> str:
    """A figure in nats a token for people: its sequences, the nats, and `more` lines."""
    count = len(figure.sequence_nats)
    nats = with_error(figure.nats_per_token, figure.nats_per_token_stderr)
    head = f"{type(figure).__name__} of {count:,} sequences, {figure.tokens:,} tokens: {nats} nats a token"
    return "\n".join([head, *(f"  {line}" for line in more)])


def plain(result: Any) -> dict[str, Any]:
    """A dataclass as a dictionary for JSON: figures that are not known are None; what `repr` leaves out is left out."""

    def one(value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if dataclasses.is_dataclass(value):
            return plain(value)
        if isinstance(value, dict):
            return {name: one(entry) for name, entry in value.items()}
        return [one(entry) for entry in value] if isinstance(value, list | tuple) else value

    fields = {entry.name: getattr(result, entry.name) for entry in dataclasses.fields(result) if entry.repr}
    return {name: one(value) for name, value in fields.items() if not isinstance(value, Tensor)}
