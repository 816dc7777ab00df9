"""`pyro-ltm report`: what a run's thoughts carry, on a page that opens from disk."""

from __future__ import annotations

from pathlib import Path

import click

from .options import FOLDER, Common, common, examples, fast_steps, run_argument


@click.command(
    short_help="What a run's thoughts carry, as a page.",
    epilog=examples(
        "pyro-ltm report runs/first",
        "pyro-ltm report runs/first --data worlds --sequences 500",
        "pyro-ltm report runs/first --labels reviews.jsonl --label-column stars --out pages/reviews",
    ),
)
@run_argument
@click.option(
    "--data", metavar="SOURCE_OR_DIR", help="Whose texts to look at; default: the run's own validation split."
)
@click.option(
    "--labels", "labels_file", metavar="FILE", type=FOLDER, help="Texts with labels (.jsonl, .csv, .parquet)."
)
@click.option("--label-column", metavar="NAME", multiple=True, help="A column of --labels to probe. Repeatable.")
@click.option("--text-column", metavar="NAME", help="Column or JSON field that holds the text; default: text.")
@fast_steps
@click.option("--sequences", metavar="N", type=click.IntRange(2), default=256, help="Texts to look at, from the first.")
@click.option("--batch-size", metavar="N", type=click.IntRange(1), default=32, help="Sequences at a time.")
@click.option("--out", type=FOLDER, metavar="DIR", help="Folder to write; default: RUN/report.")
@common(seed_help="Seed of the noise and of the probes' folds.")
def command(
    *,
    run_folder: Path,
    data: str | None,
    labels_file: Path | None,
    label_column: tuple[str, ...],
    text_column: str | None,
    fast_steps: int | None,
    sequences: int,
    batch_size: int,
    out: Path | None,
    common: Common,
) -> None:
    """Looks at the thoughts of a run and writes report.html, report.json and pictures.

    Rates, active units, mutual information, whose thoughts the decoder needs, reconstruction by layer, a map, and what
    lies between two texts. Labels are read off the thoughts by linear probes: a world's own factors, or columns of
    --labels.
    """
    if bool(labels_file) != bool(label_column):
        raise click.UsageError("--labels and --label-column go together: a file, and the columns of it to probe")
    from .output import emit, say
    from .progress import reporter
    from .runs import open_data, open_run

    run = open_run(run_folder, common)
    from pyro_ltm.training.report import write_report

    texts, labels = _read_labels(labels_file, text_column, label_column, sequences) if labels_file else (None, None)
    with reporter() as report, open_data(run, data, text_column, report) as scored:
        total = len(texts) if texts else min(sequences, len(scored))
        count = report.counting("thoughts", total)
        page, result = write_report(
            run,
            scored,
            sequences=sequences,
            fast_steps=fast_steps,
            labels=labels,
            texts=texts,
            batch_size=batch_size,
            seed=common.seed or 0,
            out=out,
            progress=lambda done: count(done, float("nan")),
        )
    if common.as_json:
        emit({**result, "page": str(page)})
        return
    found = result.get("thoughts")
    if found:
        from .output import nats, show_table

        rows = [
            ["rate, nats a sequence", nats(found["rate"]["mean"], 2)],
            [f"mutual information (at most {found['ceiling']:.2f})", nats(found["mutual_information"]["mean"], 2)],
            *([f"distortion, thoughts from {name}", nats(d["mean"])] for name, d in found["distortion"].items()),
            *([f"probe of {p['label']}", nats(p.get("accuracy"), 3)] for p in result["probes"]),
        ]
        show_table(f"Thoughts of {found['sequences']} texts", ["", ""], rows)
    else:
        say("It has no thoughts (an autoregressive twin): the page shows training and samples.")
    say(f"Written to {page}")


def _read_labels(
    path: Path, text_column: str | None, columns: tuple[str, ...], count: int
) -> tuple[list[str], dict[str, list[str]]]:
    """The first `count` texts of a file, and their labels by column."""
    import itertools

    from pyro_ltm.data.files import read_file
    from pyro_ltm.errors import UserError

    def column(name: str) -> list[str]:
        return [document.text for document in itertools.islice(read_file(path, name), count)]

    if path.suffix.lower() not in (".jsonl", ".csv", ".parquet"):
        raise UserError(f"--labels {path}: expected a .jsonl, .csv or .parquet file with a column for each label")
    return column(text_column or "text"), {name: column(name) for name in columns}
