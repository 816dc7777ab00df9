"""`pyro-ltm arithmetic`: sums of texts' thoughts."""

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
    neighbours_json,
    plot_option,
    rows_of,
    show_neighbours,
    show_points,
    writing_options,
)

if TYPE_CHECKING:
    from pyro_ltm.data import Reading
    from pyro_ltm.thoughts.points import Writing


@click.command(
    short_help="Write from a sum of texts' thoughts.",
    epilog=examples(
        "pyro-ltm arithmetic runs/first \"'A dog ran.' - 'A dog slept.' + 'A cat slept.'\"",
        "pyro-ltm arithmetic runs/first '0.5 * @one.txt + 0.5 * @other.txt' --among thoughts.parquet",
    ),
)
@run_argument
@click.argument("expression", type=Text())
@among_options()
@click.option("--metric", type=click.Choice(["cosine", "euclid"]), default="cosine", help="Distance of neighbours.")
@writing_options
@plot_option
@fitting_options
@common(weights=True)
def command(
    *,
    run_folder: Path,
    expression: str,
    among: str | None,
    count: int | None,
    metric: str,
    reading: Reading,
    writing: Writing,
    plot: Path | None,
    how: dict[str, Any],
    common: Common,
) -> None:
    """Adds up thoughts of texts, writes from the sum, and lists its neighbours.

    EXPRESSION is texts in quotes, or @FILE, with + and - between them, and perhaps a number and * before one. Among the
    neighbours the texts themselves are left out.
    """
    from pyro_ltm.thoughts.expression import parse
    from pyro_ltm.thoughts.neighbours import nearest_documents, query_of
    from pyro_ltm.thoughts.points import arithmetic

    from ..output import emit, note
    from ..runs import open_run

    if among is None and (count is not None or reading.columns or reading.id_column):
        raise click.UsageError("--count, --columns and --id-column are of --among, which is not given")
    check_plot(plot)
    terms, fitting = parse(expression), fitting_of(how, common.seed)
    run = open_run(run_folder, common)
    found = arithmetic(run, terms, fitting=fitting, writing=writing)
    near, rows = [], None
    if among is not None:
        rows = rows_of(run, among, fitting, reading).rows
        query = query_of(run, found.points[0].thoughts, rows)
        own = {end.text: end.tokens for end in found.ends}
        near = nearest_documents(query, rows, count=count, metric=metric, but=own)
    if common.as_json:
        neighbours = {"metric": metric, "neighbours": neighbours_json(near)} if among else {}
        emit({**found.to_dict(), **neighbours, **run.about, **fitting.about(run)})
    else:
        show_points("The sum", found)
        if rows is not None:
            show_neighbours(f"Nearest of {len(rows):,} documents, the texts themselves left out", near, metric)
        else:
            note("Its neighbours among documents: --among.")

    def picture() -> Any:
        from pyro_ltm.reports.points_plots import plot_places

        named = {end.name: end.thoughts for end in found.ends} | {one.name: one.thoughts for one in found.points}
        if rows is None:
            return plot_places(named)
        own = {name: query_of(run, z, rows).features for name, z in named.items()}
        return plot_places(own, rows.features, [one.row for one in near], labels_of(near))

    draw(picture, plot, common.as_json)
