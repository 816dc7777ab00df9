"""Moving thoughts along the direction in which a linear probe sees a label."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.config import suggest
from pyro_ltm.errors import UserError
from pyro_ltm.runs import Run
from pyro_ltm.runs.embedding import Embeddings
from pyro_ltm.scores.estimate import plain
from pyro_ltm.thoughts.points import End, Points, Writing, fit_ends, make_points, replaced
from pyro_ltm.thoughts.probes import Probe, found_width, linear_probe, logistic_weights
from pyro_ltm.thoughts.rows import Fitting

STRENGTHS = (0.0, 1.0, 2.0, 4.0)


@dataclass(frozen=True, kw_only=True)
class Direction:
    """The way from texts without a label to texts with it.

    Shapes:
        unit: [P], of length one: in features divided by `found_width`, the classifier's weights of this label less the
            mean of the others'. mean, weights: [P], [P + 1, C], of the classifier.

    Attributes:
        towards: the label. labels: all of them. spread: standard deviation of the texts' features along it.
        probe: how well a classifier reads the label off texts that it has not seen.
    """

    towards: str
    labels: Sequence[str]
    unit: Tensor
    spread: float
    mean: Tensor
    weights: Tensor
    probe: Probe

    @property
    def is_a_guess(self) -> bool:
        """Whether the probe is right no oftener than who always says the commonest label, but for chance."""
        return self.probe.accuracy < self.probe.majority + 2 * self.probe.stderr

    def probability(self, features: Tensor) -> Tensor:
        """[M] what the classifier gives the label, of features [M, P]."""
        scores = (features.double() - self.mean) @ self.weights[:-1] + self.weights[-1]
        return scores.softmax(-1)[:, self.labels.index(self.towards)]

    def moved(self, features: Tensor, strength: float) -> Tensor:
        """Features [P], moved by so many standard deviations of the texts along the direction."""
        return features + (strength * self.spread * self.unit).to(features.dtype)


def labels_of(rows: Embeddings, column: str) -> list[str]:
    """A column of documents as labels. Raises UserError when they have none, or one has nothing there."""
    if column not in rows.table:
        raise UserError(
            f"no column '{column}'{suggest(column, rows.table)}: there are {', '.join(rows.table) or 'none'}"
        )
    values = rows.table[column]
    # An empty field of a .csv, and in .npz a number that is not there, are as good as none.
    nothing = [value is None or value == "" or value != value for value in values]
    if any(nothing):
        number = int(rows.document[nothing.index(True)])
        raise UserError(f"column '{column}': document {number} has nothing there; every text needs a label")
    return [str(value) for value in values]


def find_direction(
    features: Tensor,
    labels: Sequence[str],
    towards: str,
    *,
    name: str = "label",
    seed: int = 0,
    decay: float = 1.0,
    documents: Tensor | None = None,
) -> Direction:
    """The direction of a label in features [S, P], by the probe that `linear_probe` cross-validates, on all texts.

    `documents` [S]: of which the rows are windows, as there.

    Raises:
        UserError: no text has the label, or as `linear_probe`.
    """
    values = sorted(set(labels))
    if towards not in values:
        raise UserError(f"{name}: no text has '{towards}'{suggest(towards, values)}: choose from {', '.join(values)}")
    probe = linear_probe(features, labels, name=name, seed=seed, decay=decay, documents=documents)
    x = features.flatten(1).double()
    mean, width = x.mean(0), found_width(features, labels, seed=seed, decay=decay, documents=documents)
    seen = (x - mean) / width
    axes = torch.linalg.svd(seen, full_matrices=False).Vh.mT  # see `probes`
    turned = logistic_weights(seen @ axes, torch.tensor([values.index(one) for one in labels]), len(values), decay)
    weights = axes @ turned[:-1]
    at = values.index(towards)
    others = [column for column in range(len(values)) if column != at]
    # Back by the width, not its inverse: a dimension in which texts hardly differ is hardly moved.
    way = width * (weights[:, at] - weights[:, others].mean(1))
    unit = way / way.norm().clamp(min=1e-30)
    return Direction(
        towards=towards,
        labels=values,
        unit=unit,
        spread=float((x @ unit).std()),
        mean=mean,
        weights=torch.cat([weights / width[:, None], turned[-1:]]),
        probe=probe,
    )


@dataclass(frozen=True, kw_only=True)
class Steered:
    """A text's thoughts, moved towards a label.

    Attributes:
        strengths: of each of `points`, in standard deviations of the texts along the direction.
        probabilities: what the classifier gives the label there.
    """

    direction: Direction
    strengths: Sequence[float]
    probabilities: Sequence[float]
    points: Points

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = self.points.to_dict()
        moved = zip(found["points"], self.strengths, self.probabilities, strict=True)
        points = [{**point, "strength": strength, "probability": chance} for point, strength, chance in moved]
        probe = plain(self.direction.probe)
        return {"towards": self.direction.towards, "probe": probe, "ends": found["ends"], "points": points}


def steer(
    run: Run,
    rows: Embeddings,
    labels: Sequence[str],
    towards: str,
    *,
    text: str | None = None,
    strengths: Sequence[float] = STRENGTHS,
    name: str = "label",
    fitting: Fitting | None = None,
    writing: Writing | None = None,
) -> Steered:
    """Texts written from thoughts that are moved towards a label.

    Args:
        rows: texts with these labels, one row each, from `read_rows`; where they have the thoughts of some layers,
            those are moved.
        text: whose thoughts; None: the mean of all rows' thoughts, and of other layers zero.
        strengths: how far, in standard deviations of the rows along the direction.
        name: what the label is called.

    Raises:
        UserError: rows are windows of one document, of which a probe would be judged on what it learned from; or as
            `find_direction` and `fit_ends`.
    """
    fitting = fitting or Fitting()
    if len(rows.document.unique()) < len(rows):
        raise UserError("rows: some are windows of one document: give rows.pooled(), and a label for each of its rows")
    if not strengths or len(set(strengths)) < len(strengths) or not all(map(math.isfinite, strengths)):
        raise UserError(f"strengths = {', '.join(map(str, strengths)) or 'none'}: expected numbers, each of them once")
    direction = find_direction(rows.features, labels, towards, name=name, seed=fitting.seed, documents=rows.document)
    ends: list[End] = []
    layers, (_, dim) = run.config.model.layers, rows.thoughts.shape[1:]
    start = torch.zeros(run.config.model.thoughts, dim)
    if text is not None:
        ends = fit_ends(run, [text], fitting)
        start = ends[0].thoughts
    start = start.float()
    parts = start.chunk(layers)
    own = torch.cat([parts[layer] for layer in rows.layers]) if text is not None else rows.thoughts.mean(0)
    moved = [direction.moved(own.flatten(), strength) for strength in strengths]
    thoughts = {
        f"{strength:g}": replaced(start, _spread(one.view_as(own), rows.layers, layers), rows.layers, layers)
        for strength, one in zip(strengths, moved, strict=True)
    }
    points = make_points(run, ends, thoughts, writing, seed=fitting.seed)
    chances = direction.probability(torch.stack(moved)).tolist()
    return Steered(direction=direction, strengths=list(strengths), probabilities=chances, points=points)


def _spread(thoughts: Tensor, chosen: Sequence[int], layers: int) -> Tensor:
    """Thoughts [n, D] of the `chosen` layers at their places among all, zero elsewhere: [N, D]."""
    parts = thoughts.chunk(len(chosen))
    empty = torch.zeros_like(parts[0])
    return torch.cat([parts[chosen.index(layer)] if layer in chosen else empty for layer in range(layers)])
