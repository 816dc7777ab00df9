"""`pyro-ltm calibrate`: q held against the truth, on texts that the model writes itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import (
    Common,
    annealing,
    batch_size,
    common,
    examples,
    fast_steps,
    fit_settings,
    gathered,
    given,
    number,
    run_argument,
)

if TYPE_CHECKING:
    from pyro_ltm.scores import Calibration, Sandwich


def _sandwich(sandwich: int | None, chains: int | None, leapfrogs: int | None, particles: int | None) -> dict[str, Any]:
    if not sandwich and (chains or leapfrogs or particles):
        raise click.UsageError("--chains, --leapfrogs and --particles are of --sandwich N, which is not given")
    return given(annealing=annealing(sandwich, chains, leapfrogs), particles=particles)


@click.command(
    short_help="Hold q against the truth, on the model's own texts.",
    epilog=examples(
        "pyro-ltm calibrate runs/first",
        "pyro-ltm calibrate runs/first --fast-steps 64 --set optimizer.lr=0.1",
        "pyro-ltm calibrate runs/first --texts 50 --sandwich 64",
    ),
)
@run_argument
@number("--texts", "Texts to write.", default=200)
@number("--length", "Tokens of each; default: as in the run's data.")
@number("--draws", "Draws of q among which the truth is ranked; N + 1 is best a multiple of 20.", default=99)
@gathered(
    "asked",
    _sandwich,
    number(
        "--sandwich",
        "Also anneal over N temperatures from q to the posterior and back from the truth: bounds on these texts' nats "
        "from both sides, which meet as N grows.",
    ),
    number("--chains", "Its chains.", show_default="4"),
    number("--leapfrogs", "Steps of each move.", show_default="4"),
    number("--particles", "Draws of the importance-weighted bound beside it.", metavar="K", show_default="16"),
)
@fast_steps
@fit_settings
@batch_size
@common(seed_help="Seed of texts and noise.", weights=True)
def command(
    *,
    run_folder: Path,
    texts: int,
    draws: int,
    asked: dict[str, Any],
    settings: tuple[str, ...],
    common: Common,
    **how: Any,
) -> None:
    """Draws thoughts from the prior and texts from the decoder, fits q to each text, and looks where the truth lies.

    Were q the posterior, the true thoughts would be one more draw of it: as often in each part of its range, in the
    central interval of level 90% in 90% of the cases. Simulation-based calibration, arXiv:1804.06788.
    """
    from ..output import emit
    from ..progress import reporter
    from ..runs import open_run

    run = open_run(run_folder, common).with_fast_loop(settings)
    how |= {"seed": common.seed or 0}
    with reporter() as report:
        found = run.calibrate(texts, draws=draws, progress=report.counting("calibrate", texts, "texts"), **how)
        sandwich = None
        if asked:
            count = report.counting("anneal both ways", texts, "texts")
            sandwich = run.sandwich(texts, progress=count, **asked, **how)
    result: dict[str, Any] = {"calibration": found.to_dict()}
    if sandwich:
        result["sandwich"] = sandwich.to_dict()
    if common.as_json:
        emit({**result, **run.about, "settings": list(settings)})
        return
    _show(found)
    if sandwich:
        _show_sandwich(sandwich)


def _show(found: Calibration) -> None:
    """Ranks and coverage, and what they come to."""
    from ..output import margin, say, show_table

    rows = [[test.statistic, f"{test.p_value:.3g}", " ".join(map(str, test.histogram))] for test in found.tests]
    show_table("Ranks of the truth among draws of q: flat where q is the posterior", ["", "p-value", "texts"], rows)
    rows = [
        [f"central {one.level:.0%} of q", f"{100 * one.share:.1f}{margin(100 * one.stderr, 1)}%"]
        for one in found.coverage
    ]
    rows.append(["spread of ranks, 1 where widths are right", f"{found.spread:.3f}{margin(found.spread_stderr, 3)}"])
    show_table("How many of the true thoughts' numbers lie in", ["", "share"], rows)
    say(f"In short: {found.verdict} (p = {found.p_value:.3g} for all {len(found.tests)} together).")
    say(f"{found.texts:,} texts of the model itself, {found.tokens:,} tokens; ± is the standard error over texts")
    say(f"{found.guide}, {found.fast_steps} fast steps, {found.draws} draws, seed {found.seed}")


def _show_sandwich(found: Sandwich) -> None:
    """The nats of the same texts, from both sides."""
    from ..output import margin, nats, say, show_table

    def level(figure: Any, stderr: float) -> str:
        return nats(figure.nats_per_token) + margin(stderr)

    figures = {
        "bound": found.bound,
        f"importance-weighted, {found.particles} draws": found.importance_weighted,
        "at most, annealed from q to the posterior": found.at_most,
        "at least, annealed back from the truth": found.at_least,
    }
    rows = [[name, level(one, one.nats_per_token_stderr)] for name, one in figures.items()]
    rows.append(["between the last two", level(found.width, found.width.stderr)])
    rows.append(["bound is off by at least", level(found.loose_at_least, found.loose_at_least.stderr)])
    rows.append(["bound is off by at most", level(found.loose_at_most, found.loose_at_most.stderr)])
    show_table("Nats of the same texts, from both sides", ["", "nats a token"], rows)
    taken = " and ".join(f"{share:.0%}" for share in found.acceptance)
    say(f"{found.temperatures} temperatures, {found.chains} chains, {taken} of moves taken")
