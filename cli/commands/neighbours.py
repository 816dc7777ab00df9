"""`pyro-ltm neighbours`: documents with thoughts like those of a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import Common, Text, common, examples, run_argument
from ..thought_options import (
    among_options,
    check_plot,
    draw,
    fitting_of,
    fitting_options,
    labels_of,
    layers_option,
    metric_option,
    neighbours_json,
    plot_option,
    rows_of,
    show_neighbours,
)

if TYPE_CHECKING:
    from pyro_ltm.data import Reading


@click.command(
    short_help="Documents with thoughts like a text's.",
    epilog=examples(
        "pyro-ltm neighbours runs/first 'A dog ran.' --among stories.jsonl",
        "pyro-ltm neighbours runs/first 'A dog ran.' --among thoughts.parquet --count 3 --plot near.svg",
        "pyro-ltm neighbours runs/first @letter.txt --among stories.jsonl --columns title --metric euclid",
    ),
)
@run_argument
@click.argument("text", type=Text())
@among_options(required=True)
@metric_option
@layers_option("Layers whose thoughts to compare, from 0; default: all.")
@plot_option
@fitting_options
@common(seed_help="Seed of the noise.", weights=True)
def command(
    *,
    run_folder: Path,
    text: str,
    among: str,
    count: int | None,
    metric: str,
    layers: tuple[int, ...] | None,
    reading: Reading,
    plot: Path | None,
    how: dict[str, Any],
    common: Common,
) -> None:
    """Lists the documents whose thoughts are nearest to those of TEXT, which is a text, or @FILE.

    cosine is 1 - the cosine of posterior means, euclid their distance. wasserstein is the 2-Wasserstein distance of the
    posteriors, kl is KL(q of the document || q of the text) in nats; a document of several windows is as near as its
    nearest. The same documents are asked again sooner if `embed` has written them to a file.
    """
    from pyro_ltm.thoughts.expression import text_of
    from pyro_ltm.thoughts.neighbours import OF_POSTERIORS, embed_query, nearest_documents

    from ..output import emit
    from ..runs import open_run

    check_plot(plot)
    text, fitting = text_of(text), fitting_of(how, common.seed)
    run = open_run(run_folder, common)
    whole = metric in OF_POSTERIORS
    rows = rows_of(run, among, fitting, reading, layers=layers, windows=whole, posteriors=whole).rows
    query = embed_query(run, text, rows, metric=metric, fitting=fitting)
    found = nearest_documents(query, rows, count=count, metric=metric, run=run)
    if common.as_json:
        emit({"text": text, "metric": metric, "neighbours": neighbours_json(found), **run.about, **fitting.about(run)})
    else:
        show_neighbours(f"Nearest of {len(rows.document.unique()):,} documents", found, metric)

    def picture() -> Any:
        from pyro_ltm.reports.points_plots import plot_places

        return plot_places({"the text": query.features[0]}, rows.features, [one.row for one in found], labels_of(found))

    draw(picture, plot, common.as_json)
