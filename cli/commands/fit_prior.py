"""`pyro-ltm fit-prior`: a prior fitted to the posteriors of a trained run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..options import FOLDER, Common, FiniteRange, batch_size, common, examples, number, run_argument


@click.command(
    short_help="Fit a prior to a trained run's posteriors.",
    epilog=examples("pyro-ltm fit-prior runs/first --prior mixture:16 --out runs/first-mixture"),
)
@run_argument
@click.option("--prior", "name", metavar="NAME", required=True, help="gaussian:true, mixture:16, flow, ...")
@click.option("--out", type=FOLDER, required=True, metavar="DIR", help="A new folder for the run under this prior.")
@number("--sequences", "Fit to so many training sequences, drawn at random.", default=1024)
@number("--steps", "Steps of Adam.", default=500)
@click.option("--lr", type=FiniteRange(0, min_open=True), default=0.01, help="Its first learning rate.")
@number("--score-sequences", "Score so many held-out sequences, from the first; default: all.")
@click.option("--particles", metavar="K", type=click.IntRange(1, 4096), default=4, help="Draws from each posterior.")
@batch_size
@common(seed_help="Seed of draws and noise.", weights=True)
def command(
    *, run_folder: Path, name: str, out: Path, score_sequences: int | None, common: Common, **given: Any
) -> None:
    """Fits a prior to the thoughts that the texts of a trained run have, in place of the one it was trained under.

    RUN stays as it is; DIR is a run of its own, with RUN's decoder and the new prior, and every command takes it. The
    prior learns from training text; the figures are of held-out text alone.
    """
    from pyro_ltm.priors import PRIORS
    from pyro_ltm.training.fit_prior import fit_prior

    from ..output import emit, show_next
    from ..progress import reporter
    from ..runs import leave_of, open_run

    prior = PRIORS.parse(name)
    run = open_run(run_folder, common)
    with reporter() as shown:
        count = shown.counting("prior", given["steps"], "steps")
        found = fit_prior(
            run,
            prior,
            out=out,
            progress=lambda step, _: count(step, float("nan")),  # which would show nats a sequence as those of a token
            sequences_scored=score_sequences,
            seed=common.seed or 0,
            **given,
        )
    if common.as_json:
        bounds = {key: bound.to_dict() for key in ("before", "after") if (bound := getattr(found, key))}
        gained = found.gained and {"nats_per_token": found.gained.nats_per_token, "stderr": found.gained.stderr}
        result = {"run": str(out), "sequences": found.sequences, "steps": found.steps, **bounds, "gained": gained}
        emit(result | ({"foretold": vars(found.foretold)} if found.foretold else {}))
        return
    _show(found, run.config.prior.name, name)
    leave = leave_of(found.run.config)
    show_next(["pyro-ltm", "generate", str(out), *leave], ["pyro-ltm", "evaluate", str(out), *leave])


def _show(found: Any, old: str, new: str) -> None:
    """The figures on held-out text under both priors."""
    from ..output import margin, nats, say, show_table

    say(f"{new}, fitted to the posteriors of {found.sequences:,} training sequences: {found.run.folder}")
    before, after, gained = found.before, found.after, found.gained
    if before is None or after is None:
        say("The run has no held-out text, and so no figures.")
        return

    def row(name: str, figure: Any) -> list[str]:
        return [name, figure(before), figure(after)]

    rows = [
        row("bound, nats a token", lambda b: nats(b.nats_per_token) + margin(b.nats_per_token_stderr)),
        row("rate (KL), nats a sequence", lambda b: nats(b.kl_nats_per_sequence, 2)),
        row("distortion, nats a token", lambda b: nats(b.distortion_nats_per_token)),
        row("  with thoughts from the prior", lambda b: nats(b.distortion_from_prior)),
    ]
    show_table("Held-out text", ["", old, new], rows)
    if found.foretold:
        spared = f"{nats(found.foretold.nats_per_sequence, 2)}{margin(found.foretold.stderr, 2)}"
        say(f"Once the beginning of a text is known, its thoughts cost {spared} nats less under {new}.")
        say(f"Without one {new} is N(0, I), and so is what bounds are taken under.")
        return
    way = "lower" if gained.nats_per_token >= 0 else "higher"
    say(f"The bound is {abs(gained.nats_per_token):.4f}{margin(gained.stderr)} nats a token {way} under {new}.")
