"""What thoughts do for likelihood: on long texts whose entropy is known, a small model comes below its twin.

    python examples/worlds.py [--out FOLDER] [--steps N]

Worlds are texts made from hidden factors (subject, place, object, mood, plot), so that their entropy is known exactly.
Model and twin, the same decoder without thoughts, look 8 tokens back; what the thoughts keep of a text lies further
away. After two minutes of training the model is on its way from the twin to the entropy; the preset `nano-worlds`, and
hours, take it further (docs/results.md).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import pyro_ltm as ltm
from pyro_ltm.config import load_toml
from pyro_ltm.runs.protocols import evaluate_protocols

WORLDS = "worlds:length=120,documents=800"
"""Documents of 120 sentences."""
DOCUMENTS, FAST_STEPS = 16, 32
"""Of those that the models have not read, how many are scored, and fast steps of each posterior then."""


def main() -> None:
    """Trains a model and its twin, and says how near each comes to the entropy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/worlds"), help="a new folder for both runs")
    parser.add_argument("--steps", type=int, help="slow steps; default: 260")
    options = parser.parse_args()

    config = load_toml(Path(__file__).with_suffix(".toml"), ltm.preset("nano-long"))
    config = ltm.apply_settings(config, [f"slow.steps={options.steps}"] if options.steps else [])
    run = ltm.train(config, data=WORLDS, out=options.out / "ltm")
    without = ltm.apply_settings(config, ["model.thoughts=0"])
    twin = ltm.train(without, data=options.out / "ltm" / "data", out=options.out / "twin")
    # The bound itself, and not at a given rate.
    fitted = run.with_parts(objective="analytic-elbo", optimizer="natural")
    found = evaluate_protocols(fitted, fitted.dataset(), twin=twin, sequences=DOCUMENTS, fast_steps=FAST_STEPS)
    show(found.to_dict())


def show(found: dict[str, Any]) -> None:
    """Twin, model and entropy, and the share of the way between that the model closes."""
    bound, closed = found["bound"], found.get("closed", {}).get("bound")
    table = Table(title="Long texts of known entropy: nats a token", title_justify="left")
    for column in ("", "nats a token", "of the way closed"):
        table.add_column(column, justify="right" if column else "left")
    table.add_row("twin", level(found["twin"]), "")
    way = f"{closed['share']:.0%} ± {closed['stderr']:.0%}" if closed else ""
    table.add_row("this model, at most", level(bound), way)
    table.add_row("entropy, exactly", level(found["floor"]), "")
    console = Console()
    console.print(table)
    lost = bound["distortion_shuffled"] - bound["distortion_nats_per_token"]
    console.print(
        f"{bound['sequences']} documents. Thoughts carry {bound['kl_nats_per_sequence']:.1f} nats of each; with those "
        f"of another document a token costs {lost:.3f} nats more.",
        highlight=False,
    )


def level(figure: dict[str, Any]) -> str:
    """A figure with its standard error."""
    return f"{figure['nats_per_token']:.3f} ± {figure['nats_per_token_stderr']:.3f}"


if __name__ == "__main__":
    try:
        main()
    except ltm.UserError as error:
        sys.exit(f"Error: {error}")
