"""Linear probes of labels, a map of thoughts in two dimensions, and the way between two of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_ltm.errors import UserError

FOLDS = 5
COMMON = (False, True)
"""Whether one number divides all features, or each its own."""


@dataclass(frozen=True)
class Probe:
    """How well a linear classifier reads a label off the posterior means.

    Attributes:
        label: its name. classes: how many values it has here.
        accuracy: on texts that the classifier never saw, over `FOLDS` folds. stderr: its standard error over texts.
        majority: share of the commonest value, what a guess would reach.
        control: accuracy on labels that were shuffled: near the majority, or the probe itself is at fault.
        texts: how many.
    """

    label: str
    classes: int
    accuracy: float
    stderr: float
    majority: float
    control: float
    texts: int


def linear_probe(
    features: Tensor,
    labels: Sequence[str],
    *,
    name: str,
    seed: int = 0,
    decay: float = 1.0,
    documents: Tensor | None = None,
) -> Probe:
    """Logistic regression of `labels` on centred `features` [S, P], cross-validated; widths as `found_width` has them.

    Args:
        documents: [S] of which each row is a part; a fold has all rows of a document or none, and the error is over
            documents. None: each row is one of its own.
        decay: weight of the squared norm, against the sum over texts of their nats (a Normal prior on the weights).

    Raises:
        UserError: fewer than 10 texts, or a label with one value.
    """
    values = sorted(set(labels))
    known = torch.arange(len(labels)) if documents is None else documents
    of = known.unique(return_inverse=True)[1]
    texts = int(of.max()) + 1 if len(of) else 0
    if texts < 2 * FOLDS or len(values) < 2:
        raise UserError(
            f"label '{name}': {texts} texts with {len(values)} values: a probe needs at least {2 * FOLDS} and 2"
        )
    x = features.flatten(1).double()
    y = torch.tensor([values.index(label) for label in labels])
    generator = torch.Generator().manual_seed(seed)
    folds = _folds(of, generator)
    right = _cross_validated(x, y, folds, len(values), decay)
    control = _cross_validated(x, y[torch.randperm(len(y), generator=generator)], folds, len(values), decay)
    off = torch.zeros(texts, dtype=torch.float64).index_add(0, of, right - right.mean())
    return Probe(
        label=name,
        classes=len(values),
        accuracy=float(right.mean()),
        stderr=float(off.square().sum().sqrt() / len(right) * math.sqrt(texts / (texts - 1))),
        majority=float(torch.bincount(y).max() / len(y)),
        control=float(control.mean()),
        texts=texts,
    )


def verdict(probe: Probe, baselines: Mapping[str, Probe]) -> str:
    """In a sentence, which baselines read the label better than the thoughts do; empty where none does.

    Better by less than two standard errors of both together is said to be so.
    """
    better = {name: one for name, one in baselines.items() if one.accuracy > probe.accuracy}
    if not better:
        return ""
    told = []
    for name, one in sorted(better.items(), key=lambda item: -item[1].accuracy):
        gap, error = one.accuracy - probe.accuracy, math.hypot(one.stderr, probe.stderr)
        told.append(f"{name} ({one.accuracy:.3f}{'' if gap > 2 * error else ', within two standard errors'})")
    return f"The thoughts' {probe.accuracy:.3f} on {probe.label} is below {', '.join(told)}."


def found_width(
    features: Tensor, labels: Sequence[str], *, seed: int = 0, decay: float = 1.0, documents: Tensor | None = None
) -> Tensor:
    """[P] by what the classifier of all texts divides centred `features` [S, P]; arguments as of `linear_probe`.

    Either each feature's own spread, or one number for all, the root mean square of these: whichever gives the labels
    of folds that the classifier has not seen fewer nats. Features of several units need their own. To those whose
    variance has a meaning, as singular vectors, it is a handicap: it raises all directions of noise to the few that
    tell something.
    """
    values = sorted(set(labels))
    known = torch.arange(len(labels)) if documents is None else documents
    folds = _folds(known.unique(return_inverse=True)[1], torch.Generator().manual_seed(seed))
    x, y = features.flatten(1).double(), torch.tensor([values.index(label) for label in labels])
    nats = torch.zeros(len(COMMON), dtype=torch.float64)
    for fold in range(FOLDS):
        nats += _held_out_nats(x, y, folds != fold, folds == fold, len(values), decay).sum(1)
    return _width(x, COMMON[int(nats.argmin())])


def _folds(of: Tensor, generator: torch.Generator) -> Tensor:
    """[S] the fold of each row, by lot, given the number of its document."""
    folds = torch.empty(int(of.max()) + 1, dtype=torch.int64)
    for fold, held_out in enumerate(torch.randperm(len(folds), generator=generator).tensor_split(FOLDS)):
        folds[held_out] = fold
    return folds[of]


def _cross_validated(x: Tensor, y: Tensor, folds: Tensor, classes: int, decay: float) -> Tensor:
    """[S] whether each label was predicted right by a classifier that had not seen its fold, of `folds` [S].

    Of the folds that it has seen each is held out in turn to choose the widths, as `found_width` does.
    """
    nats = torch.zeros(FOLDS, len(COMMON), dtype=torch.float64)
    for one, other in itertools.combinations(range(FOLDS), 2):
        # One fit without both serves twice: for who lacks the one it is judged by the other, and the reverse.
        train, either = (folds != one) & (folds != other), (folds == one) | (folds == other)
        each = _held_out_nats(x, y, train, either, classes, decay)
        nats[one] += each[:, folds[either] == other].sum(1)
        nats[other] += each[:, folds[either] == one].sum(1)
    right = torch.zeros(len(y), dtype=torch.float64)
    for fold in range(FOLDS):
        held_out, train = folds == fold, folds != fold
        scores = _scores(x, y, train, held_out, COMMON[int(nats[fold].argmin())], classes, decay)
        right[held_out] = (scores.argmax(-1) == y[held_out]).double()
    return right


def _held_out_nats(x: Tensor, y: Tensor, train: Tensor, held_out: Tensor, classes: int, decay: float) -> Tensor:
    """[len(COMMON), S'] nats of the labels of rows that were held out, by either kind of width."""
    scores = [_scores(x, y, train, held_out, common, classes, decay) for common in COMMON]
    return torch.stack([F.cross_entropy(each, y[held_out], reduction="none") for each in scores])


def _scores(x: Tensor, y: Tensor, train: Tensor, held_out: Tensor, common: bool, classes: int, decay: float) -> Tensor:
    """[S', C] the logits of rows that are held out, by a classifier of those to `train` on."""
    mean, width = x[train].mean(0), _width(x[train], common)
    seen, unseen = (x[train] - mean) / width, (x[held_out] - mean) / width
    # The best weights lie where the seen texts do: turned onto their axes the problem is the same, and no wider than
    # there are texts.
    axes = torch.linalg.svd(seen, full_matrices=False).Vh.mT
    weight = logistic_weights(seen @ axes, y[train], classes, decay)
    return unseen @ axes @ weight[:-1] + weight[-1]


def _width(x: Tensor, common: bool) -> Tensor:
    """[P] the spread of each feature of x [S, P], or of all the root mean square of theirs."""
    spread = x.std(0)
    return (spread.square().mean().sqrt().expand_as(spread) if common else spread).clamp(min=1e-9)


def logistic_weights(x: Tensor, y: Tensor, classes: int, decay: float) -> Tensor:
    """Weights [P + 1, C] of a logistic regression of the classes `y` [S] on `x` [S, P], the intercepts last.

    The problem is convex: Newton's method, whose steps conjugate gradients find, halved until the nats fall.
    """
    x = torch.cat([x, x.new_ones(len(x), 1)], 1)
    told = F.one_hot(y, classes).to(x.dtype)
    decays = x.new_tensor([decay] * (x.shape[1] - 1) + [0.0])[:, None]

    def at(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_p = (x @ weight).log_softmax(-1)
        p = log_p.exp()
        nats = (decays * weight.square()).sum() / 2 - (told * log_p).sum()
        return nats, x.mT @ (p - told) + decays * weight, p

    weight = x.new_zeros(x.shape[1], classes)
    nats, slope, p = at(weight)
    for _ in range(100):
        if slope.abs().max() < 1e-7:
            break

        def bent(way: Tensor, p: Tensor = p) -> Tensor:
            moved = p * (x @ way)
            return x.mT @ (moved - p * moved.sum(-1, keepdim=True)) + decays * way

        way = _conjugate_gradients(bent, -slope)
        size, aim = 1.0, float((way * slope).sum())
        while (found := at(weight + size * way))[0] > nats + 1e-4 * size * aim and size > 1e-6:
            size /= 2
        weight = weight + size * way
        nats, slope, p = found
    return weight


def _conjugate_gradients(times: Callable[[Tensor], Tensor], goal: Tensor) -> Tensor:
    """The z of `times(z) = goal`, for a symmetric and positive `times`; the nearer, the smaller `goal` is."""
    z, rest, way = torch.zeros_like(goal), goal, goal
    square = first = float(goal.square().sum())
    while square > first * min(0.01, first**0.5):
        along = times(way)
        size = square / float((way * along).sum())
        z, rest = z + size * way, rest - size * along
        before, square = square, float(rest.square().sum())
        way = rest + square / before * way
    return z


def principal_components(features: Tensor, count: int = 2) -> tuple[Tensor, Tensor]:
    """Coordinates [S, count] of features [S, P] along their principal axes, and the share of variance on each."""
    x = features.flatten(1).double()
    x = x - x.mean(0)
    left, singular, _ = torch.linalg.svd(x, full_matrices=False)
    count = min(count, len(singular))
    total = singular.square().sum().clamp(min=1e-30)
    return left[:, :count] * singular[:count], singular[:count].square() / total


def between(first: Tensor, second: Tensor, steps: int, *, spherical: bool = True) -> Tensor:
    """Thoughts [steps, N, D] on the way from `first` to `second` [N, D], ends included.

    Spherical keeps their length between those of the two ends, where the prior has its mass; a straight line cuts
    through the middle, which the prior hardly ever draws (White, arXiv:1609.04468).
    """
    share = torch.linspace(0, 1, steps, dtype=first.dtype)[:, None]
    a, b = first.flatten(), second.flatten()
    cosine = (a @ b / (a.norm() * b.norm()).clamp(min=1e-12)).clamp(-1, 1)
    angle = torch.arccos(cosine)
    if spherical and angle.sin() > 1e-6:
        mixed = (torch.sin((1 - share) * angle) * a + torch.sin(share * angle) * b) / angle.sin()
    else:
        mixed = (1 - share) * a + share * b
    return mixed.view(steps, *first.shape)


def far_apart(features: Tensor, count: int) -> list[int]:
    """Rows of `features` [S, N, D]: the first, then each time the one farthest from all that are chosen."""
    flat = features.flatten(1)
    chosen = [0]
    while len(chosen) < min(count, len(flat)):
        distance = torch.cdist(flat, flat[chosen]).amin(1)
        distance[chosen] = -1  # also where all lie in one place
        chosen.append(int(distance.argmax()))
    return chosen


def nearest(query: Tensor, features: Tensor, count: int = 3) -> list[int]:
    """The rows of `features` [S, N, D] closest to `query` [N, D], the closest first."""
    distance = (features - query).flatten(1).norm(dim=1)
    return [int(row) for row in distance.argsort()[:count]]
