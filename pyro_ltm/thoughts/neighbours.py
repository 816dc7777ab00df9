"""Which documents have thoughts like those of a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_ltm.config import suggest
from pyro_ltm.divergence import analytic_kl, normal_of
from pyro_ltm.errors import UserError
from pyro_ltm.runs import Run
from pyro_ltm.runs.documents import SHOWN
from pyro_ltm.runs.embedding import Embeddings, embed_texts
from pyro_ltm.thoughts.rows import Fitting

COUNT = 10
"""Neighbours that are named, where no number is given and there are so many documents."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A document near a text.

    Attributes:
        row: of the embeddings. distance: by the metric asked for. about: its number, its beginning, id and columns.
    """

    row: int
    distance: float
    about: dict[str, Any]


def find_neighbours(
    run: Run,
    text: str,
    among: Embeddings,
    *,
    count: int | None = None,
    metric: str = "cosine",
    fitting: Fitting | None = None,
) -> list[Neighbour]:
    """The documents whose thoughts are nearest to those of `text`, the nearest first.

    Args:
        among: documents, from `read_rows`; for `wasserstein` and `kl` with their posteriors, a window a row.
        count: how many; None: `COUNT`, or all if there are fewer.
        metric: cosine, 1 - the cosine of posterior means; euclid, their distance; wasserstein, the 2-Wasserstein
            distance of the posteriors; kl, KL(q of the document || q of the text) in nats. A document of several
            windows is as near as the nearest of them, under the first two as its own row.
        fitting: how the text's posterior is fitted, as the documents' were.

    Raises:
        UserError: unknown metric, one that these posteriors do not have, or more neighbours than documents.
    """
    query = embed_query(run, text, among, metric=metric, fitting=fitting)
    return nearest_documents(query, among, count=count, metric=metric, run=run)


def embed_query(
    run: Run, text: str, among: Embeddings, *, metric: str = "cosine", fitting: Fitting | None = None
) -> Embeddings:
    """A text's thoughts as one row, to be compared with those of `among` (see `find_neighbours`)."""
    check_metric(metric)
    fitting = fitting or Fitting()
    whole: dict[str, Any] = {"windows": metric in OF_POSTERIORS, "posteriors": metric in OF_POSTERIORS}
    return embed_texts(fitting.loop_of(run), [text], layers=among.layers, **whole, **fitting.how)


def query_of(run: Run, thoughts: Tensor, among: Embeddings) -> Embeddings:
    """Thoughts [N, D] as one row, in the layers of `among`."""
    parts = thoughts.chunk(run.config.model.layers)
    own = torch.cat([parts[layer] for layer in among.layers])[None]
    one = torch.zeros(1, dtype=torch.int64)
    return Embeddings(
        thoughts=own, document=one, window=one, tokens=one, bound_nats=one.float(), texts=[""], layers=among.layers
    )


def nearest_documents(
    query: Embeddings,
    among: Embeddings,
    *,
    count: int | None = None,
    metric: str = "cosine",
    run: Run | None = None,
    but: Mapping[str, int] | None = None,
) -> list[Neighbour]:
    """The documents nearest to the one row of `query` (see `find_neighbours`).

    Args:
        run: whose posteriors they are, for the metrics of posteriors.
        but: texts that are left out, with the tokens of each: documents that begin so, and are as long.

    Raises:
        UserError: as `find_neighbours`.
    """
    check_metric(metric)
    if len(query) > 1:
        raise UserError(
            f"--metric {metric}: the text is longer than the model reads at once; shorten it, or use cosine"
        )
    if metric in OF_POSTERIORS:
        distance = OF_POSTERIORS[metric](run, query, among)
    else:
        distance = OF_MEANS[metric](query.features.double(), among.features.double())
    order = distance.argsort(stable=True).tolist()
    first: dict[int, int] = {}
    left_out = {(text[:SHOWN], tokens) for text, tokens in (but or {}).items()}
    for row in order:
        if (among.texts[row], int(among.tokens[row])) not in left_out:
            first.setdefault(int(among.document[row]), row)
    if count is not None and count > len(first):
        known = "is only 1 document" if len(first) == 1 else f"are only {len(first)} documents"
        raise UserError(f"{count} neighbours: there {known}; ask for at most so many")
    rows = list(first.values())[: COUNT if count is None else count]
    return [Neighbour(row=row, distance=float(distance[row]), about=among.about(row)) for row in rows]


def check_metric(metric: str) -> None:
    """Raises UserError when there is no such metric."""
    if metric not in METRICS:
        raise UserError(f"metric = {metric!r}{suggest(metric, METRICS)}: choose from {', '.join(METRICS)}")


def _cosine(query: Tensor, rows: Tensor) -> Tensor:
    """[R] 1 - cosine; 1 to thoughts that are all zero, which have no direction."""
    return (1 - torch.nn.functional.cosine_similarity(query, rows, dim=1, eps=1e-30)).clamp(min=0)


def _euclid(query: Tensor, rows: Tensor) -> Tensor:
    """[R] the distance of features."""
    return (rows - query).norm(dim=1)


def _posteriors(run: Run | None, query: Embeddings, rows: Embeddings) -> tuple[Any, Any]:
    """Q of the text, batch shape [1], and of the rows, [R]. Raises UserError when there are none to compare."""
    if run is None or query.state is None or rows.state is None or len(rows.layers) < run.config.model.layers:
        raise UserError(
            "a distance of posteriors needs texts of whose thoughts all layers are fitted now, a row for each window: "
            "choose cosine or euclid for rows that are pooled, or read from a file"
        )
    device = run.device

    def of(one: Embeddings) -> Any:
        assert one.state is not None
        return run.loop.guide.scored_distribution({name: value.to(device) for name, value in one.state.items()})

    q, others = of(query), of(rows)
    if q is None:
        raise UserError(f"the guide '{run.config.guide.name}' fits points, between which there is no KL: choose euclid")
    return q, others


@torch.no_grad()
def _wasserstein(run: Run | None, query: Embeddings, rows: Embeddings) -> Tensor:
    """[R], of independent Normals: the square root of the squared distances of locations and of scales."""
    q, others = map(normal_of, _posteriors(run, query, rows))
    if q is None or others is None:
        raise _no_form(run, "wasserstein")
    squares = sum((a - b).double().square() for a, b in zip(q, others, strict=True))
    assert isinstance(squares, Tensor)
    return squares.flatten(1).sum(1).sqrt().cpu()


@torch.no_grad()
def _kl(run: Run | None, query: Embeddings, rows: Embeddings) -> Tensor:
    """[R] nats."""
    q, others = _posteriors(run, query, rows)
    found = analytic_kl(others, q)
    if found is None:
        raise _no_form(run, "kl")
    return found.double().cpu()


def _no_form(run: Run | None, metric: str) -> UserError:
    name = run.config.guide.name if run else ""
    return UserError(f"--metric {metric}: there is no closed form for the posteriors of the guide '{name}': use cosine")


OF_MEANS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": _cosine, "euclid": _euclid}
OF_POSTERIORS: dict[str, Callable[[Run | None, Embeddings, Embeddings], Tensor]] = {
    "wasserstein": _wasserstein,
    "kl": _kl,
}
METRICS = (*OF_MEANS, *OF_POSTERIORS)
"""Distances by their names: of posterior means, and of posteriors."""
