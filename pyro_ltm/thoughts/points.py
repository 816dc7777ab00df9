"""Texts as points in the space of thoughts: between them, their sums, and what is written from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.errors import UserError, one_line
from pyro_ltm.inference import Generated
from pyro_ltm.inference.log_joint import LogJoint
from pyro_ltm.model import DecodingOptions
from pyro_ltm.runs import Run
from pyro_ltm.runs.documents import SHOWN, Piece, infer_documents, piece_of_text
from pyro_ltm.runs.embedding import check_layers
from pyro_ltm.thoughts.expression import Term, parse
from pyro_ltm.thoughts.probes import between
from pyro_ltm.thoughts.rows import Fitting
from pyro_ltm.types import Batch

WAYS = ("linear", "spherical")


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How texts are written from thoughts; the arguments of `Run.generate`."""

    prompt: str = ""
    num: int = 1
    max_new_tokens: int | None = None
    sampler: DecodingOptions = field(default_factory=lambda: DecodingOptions(temperature=0))


@dataclass(frozen=True, kw_only=True)
class End:
    """A text that was given, with its thoughts.

    Shapes:
        thoughts: [N, D], the posterior mean.

    Attributes:
        name: A, B, ... bound_nats: at least so many nats is its log-probability, on draws that the fit has not seen;
            NaN of a point, which has no bound.
    """

    name: str
    text: str
    thoughts: Tensor
    tokens: int
    bound_nats: float
    piece: Piece

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        bound = {"bound_nats": self.bound_nats, "bound_nats_per_token": -self.bound_nats / self.tokens}
        return {"name": self.name, "text": self.text, "tokens": self.tokens, **bound}


@dataclass(frozen=True, kw_only=True)
class Point:
    """Thoughts [N, D], and what they are worth.

    Attributes:
        name: what to call it. nats_per_token: distortion of each end's text under these very thoughts, by its name.
        written: texts from these thoughts.
    """

    name: str
    thoughts: Tensor
    nats_per_token: Mapping[str, float]
    written: Sequence[Generated]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        texts = [{"text": one.text, "tokens": one.tokens, "ended": one.ended} for one in self.written]
        return {"name": self.name, "nats_per_token": dict(self.nats_per_token), "texts": texts}


@dataclass(frozen=True, kw_only=True)
class Points:
    """The texts that were given, and the points that were made of them."""

    ends: Sequence[End]
    points: Sequence[Point]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"ends": [end.to_dict() for end in self.ends], "points": [point.to_dict() for point in self.points]}


def fit_ends(run: Run, texts: Sequence[str], fitting: Fitting | None = None) -> list[End]:
    """Texts, each of which the model reads at once, with their thoughts: equal texts have equal ones.

    Raises:
        UserError: the model has no thoughts, or a text is empty or too long.
    """
    fitting = fitting or Fitting()
    fitted = fitting.loop_of(run)
    pieces = []
    for text in texts:
        try:
            pieces.append(piece_of_text(run, text))
        except UserError as error:
            raise UserError(f"'{one_line(text, SHOWN)}': {error}") from None
    found = infer_documents(fitted, pieces, same_noise=True, states=False, **fitting.how).tensors
    names = [chr(ord("A") + number) if number < 26 else f"T{number + 1}" for number in range(len(texts))]
    columns = (names, texts, found["thoughts"], found["tokens"].tolist(), found["bound_nats"].tolist(), pieces)
    return [
        End(name=name, text=text, thoughts=z, tokens=tokens, bound_nats=bound, piece=piece)
        for name, text, z, tokens, bound, piece in zip(*columns, strict=True)
    ]


@torch.no_grad()
def make_points(
    run: Run, ends: Sequence[End], thoughts: Mapping[str, Tensor], writing: Writing | None = None, *, seed: int = 0
) -> Points:
    """Points at these `thoughts` [N, D], by name, with texts written from each; a point's do not depend on the others.

    Raises:
        UserError: more new tokens than fit.
    """
    writing = writing or Writing()
    z = torch.stack(list(thoughts.values())).to(run.device)
    nats = {end.name: _distortion(run, end, z) for end in ends}
    how: dict[str, Any] = {"prompt": writing.prompt, "num": writing.num, "seed": seed}
    how |= {"max_new_tokens": writing.max_new_tokens, "sampler": writing.sampler}
    points = [
        Point(
            name=name,
            thoughts=one.cpu(),
            nats_per_token={end: values[row] for end, values in nats.items()},
            written=run.generate(thoughts=one[None], **how),
        )
        for row, (name, one) in enumerate(zip(thoughts, z, strict=True))
    ]
    return Points(ends=ends, points=points)


def _distortion(run: Run, end: End, z: Tensor) -> list[float]:
    """Nats a token of an end's text under each of the thoughts `z` [P, N, D]."""
    batch = Batch.from_lists([end.piece.tokens], pad=run.tokenizer.end_of_text).to(run.device)
    target = LogJoint(run.model, batch)
    return [-float(target.parts(one[None])[0]) / end.tokens for one in z]


def interpolate(
    run: Run,
    first: str,
    second: str,
    *,
    steps: int = 7,
    way: str = "linear",
    fitting: Fitting | None = None,
    writing: Writing | None = None,
) -> Points:
    """Points on the way from one text's thoughts to another's, ends included; each bears its share of the second.

    Args:
        way: linear; or spherical, which keeps the length of the ends (see `between`).

    Raises:
        UserError: an unknown way, fewer than two steps, or as `fit_ends`.
    """
    if way not in WAYS or steps < 2:
        raise UserError(f"way = {way!r}, steps = {steps}: expected {' or '.join(WAYS)}, and at least 2 steps")
    fitting = fitting or Fitting()
    ends = fit_ends(run, [first, second], fitting)
    path = between(ends[0].thoughts, ends[1].thoughts, steps, spherical=way == "spherical")
    names = [f"{step / (steps - 1):.2f}" if steps <= 101 else f"{step / (steps - 1):.5f}" for step in range(steps)]
    return make_points(run, ends, dict(zip(names, path, strict=True)), writing, seed=fitting.seed)


def swap(
    run: Run,
    first: str,
    second: str,
    layers: Sequence[int],
    *,
    fitting: Fitting | None = None,
    writing: Writing | None = None,
) -> Points:
    """Each text's own thoughts, and each with the other's in these layers.

    Raises:
        UserError: the model has not those layers, or as `fit_ends`.
    """
    fitting = fitting or Fitting()
    chosen = check_layers(run.config.model, layers)
    ends = fit_ends(run, [first, second], fitting)
    a, b = (end.thoughts for end in ends)
    named = ("layer " if len(chosen) == 1 else "layers ") + ",".join(map(str, chosen))
    thoughts = {
        "A": a,
        f"A with {named} of B": replaced(a, b, chosen, run.config.model.layers),
        f"B with {named} of A": replaced(b, a, chosen, run.config.model.layers),
        "B": b,
    }
    return make_points(run, ends, thoughts, writing, seed=fitting.seed)


def replaced(thoughts: Tensor, by: Tensor, chosen: Sequence[int], layers: int) -> Tensor:
    """Thoughts [N, D] of so many layers, those of the `chosen` ones from another text."""
    mine, others = thoughts.chunk(layers), by.chunk(layers)
    return torch.cat([others[layer] if layer in chosen else mine[layer] for layer in range(layers)])


def arithmetic(
    run: Run,
    expression: str | Sequence[Term],
    *,
    fitting: Fitting | None = None,
    writing: Writing | None = None,
) -> Points:
    """The one point that a sum of texts' thoughts gives, such as `'A dog ran.' - 'A dog slept.' + 'A cat slept.'`.

    Args:
        expression: see `expression.parse`; or its terms.

    Raises:
        UserError: an expression that is none, or as `fit_ends`.
    """
    fitting = fitting or Fitting()
    terms = parse(expression) if isinstance(expression, str) else list(expression)
    texts = list(dict.fromkeys(term.text for term in terms))
    ends = fit_ends(run, texts, fitting)
    by_text = {end.text: end for end in ends}
    # Weights of one text are added up first, so that one that is taken away again leaves nothing behind.
    weights = {text: sum(term.weight for term in terms if term.text == text) for text in texts}
    total = torch.stack([weight * by_text[text].thoughts for text, weight in weights.items()]).sum(0)
    name = " ".join(_signed(term.weight, by_text[term.text].name, first=not place) for place, term in enumerate(terms))
    return make_points(run, ends, {name: total}, writing, seed=fitting.seed)


def _signed(weight: float, name: str, *, first: bool) -> str:
    """A term as it is read: `- 0.5 * B`."""
    sign = ("-" if weight < 0 else "") if first else ("- " if weight < 0 else "+ ")
    return sign + (name if abs(weight) == 1 else f"{abs(weight):g} * {name}")
