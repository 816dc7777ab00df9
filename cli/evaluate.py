"""`pyro-ltm evaluate`: the honest bound."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import FOLDER, Common, common, examples, fast_steps, run_argument

if TYPE_CHECKING:
    from pyro_ltm.data import TokenDataset
    from pyro_ltm.evaluation import Bound
    from pyro_ltm.training import Run

    from .progress import Reporter

IGNORED = 0.01
"""Another sequence's thoughts cost fewer nats a token than this: the decoder ignores them."""


@click.command(
    short_help="Score a run: the honest bound and its parts.",
    epilog=examples(
        "pyro-ltm evaluate runs/first",
        "pyro-ltm evaluate runs/first --twin runs/twin --particles 16",
        "pyro-ltm evaluate runs/first --data other.txt --fast-steps 64 --json",
    ),
)
@run_argument
@click.option(
    "--data",
    metavar="SOURCE_OR_DIR",
    help="What to score: a prepared folder, or text, of which all is scored; default: the run's own validation split.",
)
@click.option("--text-column", metavar="NAME", help="Column or JSON field that holds the text; default: text.")
@click.option("--particles", metavar="N", type=click.IntRange(1), default=4, help="Draws from each posterior.")
@fast_steps
@click.option("--twin", "twin_folder", metavar="RUN", type=FOLDER, help="A run to score on the same data, beside it.")
@click.option(
    "--sequences", metavar="N", type=click.IntRange(1), help="Score only so many, from the first; default: all."
)
@click.option("--batch-size", metavar="N", type=click.IntRange(1), default=32, help="Sequences at a time.")
@common(seed_help="Seed of the noise.")
def command(
    *,
    run_folder: Path,
    data: str | None,
    text_column: str | None,
    particles: int,
    fast_steps: int | None,
    twin_folder: Path | None,
    sequences: int | None,
    batch_size: int,
    common: Common,
) -> None:
    """Scores a run: an upper bound on the nats a token that its model needs, and what that is made of.

    The posterior is fitted to each sequence, then scored on fresh noise with the whole KL charged. Figures of the run's
    own data also go into RUN/evaluation.json, and as a picture into RUN/plots/bounds.png.
    """
    from .output import FIXED_NOISE, emit, note
    from .progress import reporter
    from .runs import open_data, open_run

    run = open_run(run_folder, common)
    twin = open_run(twin_folder, common) if twin_folder else None
    if twin is not None:
        _check_twin(run, twin)
    if run.config.fast.noise == "fixed":
        note(FIXED_NOISE)
    options = {"particles": particles, "fast_steps": fast_steps, "sequences": sequences, "batch_size": batch_size}
    bounds: dict[str, Bound] = {}
    with reporter() as report, open_data(run, data, text_column, report) as scored:
        for name, one in {"bound": run, "twin": twin}.items():
            if one is not None:
                label = "evaluate" if name == "bound" else "evaluate twin"
                bounds[name] = _score(one, scored, report, label, seed=common.seed or 0, **options)
        where = data or f"{scored.folder.path} ({scored.split})"
    result: dict[str, Any] = {name: bound.to_dict() for name, bound in bounds.items()}
    result |= {"run": str(run_folder), "step": run.step, "data": where}
    if twin_folder:
        result["twin_run"] = str(twin_folder)
    if data is None:
        _save(run_folder, result, bounds)
    if common.as_json:
        emit(result)
    else:
        _show(bounds, where)
    bound = bounds["bound"]
    if (
        bound.sequences > 1
        and run.config.model.thoughts
        and bound.distortion_shuffled - bound.distortion_nats_per_token < IGNORED
    ):
        note("Warning: the decoder ignores its thoughts: those of another sequence serve it as well.")


def _check_twin(run: Run, twin: Run) -> None:
    """Raises UserError when the two do not read the same tokens."""
    from pyro_ltm.errors import UserError

    if twin.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise UserError(
            f"--twin {twin.folder}: has another tokenizer than {run.folder}, so nats a token cannot be compared; "
            "train both on the same prepared folder"
        )
    if twin.config.model != run.config.model.twin:
        raise UserError(
            f"--twin {twin.folder}: not the twin of {run.folder}, which is the same decoder with model.thoughts = 0; "
            "evaluate another model by itself"
        )


def _score(
    run: Run, data: TokenDataset, report: Reporter, label: str, *, sequences: int | None, **options: Any
) -> Bound:
    total = len(data) if sequences is None else min(sequences, len(data))
    return run.evaluate(data, sequences=sequences, progress=report.counting(label, total), **options)


def _save(run_folder: Path, result: dict[str, Any], bounds: dict[str, Bound]) -> None:
    """Keeps the figures beside the run; a run folder that cannot be written is no reason to keep them to ourselves."""
    from pyro_ltm.errors import UserError
    from pyro_ltm.evaluation.plots import plot_bounds
    from pyro_ltm.files import write_text

    from .output import note

    try:
        write_text(run_folder / "evaluation.json", json.dumps(result, indent=2) + "\n")
        names = {"bound": "this run", "twin": "twin"}
        plot_bounds({names[name]: bound for name, bound in bounds.items()}, run_folder / "plots" / "bounds.png")
    except UserError as error:
        note(f"Warning: {error}")


def _show(bounds: dict[str, Bound], where: str) -> None:
    """The figures side by side."""
    from .output import margin, nats, say, show_table

    def row(name: str, figure: Any) -> list[str]:
        return [name, *(figure(bound) for bound in bounds.values())]

    def thoughtful(name: str, figure: Any, digits: int = 4) -> list[str]:
        return row(name, lambda b: nats(figure(b), digits) if b.active_fraction_by_layer else "-")

    rows = [
        row("nats a token", lambda b: nats(b.nats_per_token) + margin(b.nats_per_token_stderr)),
        row("perplexity", lambda b: nats(b.perplexity, 2)),
        row("bits a byte", lambda b: nats(b.bits_per_byte)),
        thoughtful("rate (KL), nats a sequence", lambda b: b.kl_nats_per_sequence, 2),
        row("distortion, nats a token", lambda b: nats(b.distortion_nats_per_token)),
        thoughtful("  with thoughts from the prior", lambda b: b.distortion_from_prior),
        thoughtful("  with thoughts all zero", lambda b: b.distortion_zeroed),
        thoughtful("  with another sequence's thoughts", lambda b: b.distortion_shuffled),
    ]
    first = bounds["bound"]
    rows.insert(1, thoughtful(f"  importance-weighted, {first.particles} draws", lambda b: b.iwae_nats_per_token))
    shares = [
        [f"active dimensions, layer {layer}", f"{share:.0%}", *["-"] * (len(bounds) - 1)]
        for layer, share in enumerate(first.active_fraction_by_layer, 1)
    ]
    if "twin" in bounds:  # a second model with thoughts has shares of its own
        for entry, share in zip(shares, bounds["twin"].active_fraction_by_layer, strict=False):
            entry[-1] = f"{share:.0%}"
    columns = ["", *({"bound": "this run", "twin": "twin"}[name] for name in bounds)]
    show_table("Upper bound on nats, and what it is made of", columns, rows + shares)
    say(f"{first.sequences:,} sequences, {first.tokens:,} tokens of {where}")
    say(f"{first.fast_steps} fast steps, {first.particles} particles, fresh noise, seed {first.seed}")
    with contextlib.suppress(KeyError):
        gap = bounds["twin"].nats_per_token - first.nats_per_token
        say(f"The bound is {abs(gap):.4f} nats a token {'below' if gap >= 0 else 'above'} the twin's.")
