"""What thoughts do for likelihood: on long texts whose entropy is known, a small model comes below its twin.

    python examples/worlds.py [--out FOLDER] [--steps N]

Worlds are texts made from hidden factors (subject, place, object, mood, plot), so that their entropy is known exactly.
Model and twin, the same decoder without thoughts, look 8 tokens back; what the thoughts keep of a text lies further
away. After a minute of training the model is on its way from the twin to the entropy; the preset `nano-worlds`, and
hours, take it further (docs/results.md).
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import pyro_ltm as ltm
from pyro_ltm.runs.protocols import evaluate_protocols

console = Console()
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
    show(compare(options.out, options.steps))


def compare(out: Path, steps: int | None) -> dict[str, Any]:
    """Trains a model and its twin below `out`, and scores both on the same documents."""
    told = ["--preset", "nano-long", "--config", str(Path(__file__).with_suffix(".toml"))]
    told += ["--steps", str(steps)] if steps else []
    model, twin = out / "ltm", out / "twin"
    run("train", "--data", WORLDS, "--out", str(model), *told)
    run("train", "--data", str(model / "data"), "--out", str(twin), *told, "--set", "model.thoughts=0")
    console.print(f"\nscoring {DOCUMENTS} documents by both: a minute at most", highlight=False)
    # The bound itself, and not at a given rate.
    fitted = ltm.Run.load(model).with_parts(objective="analytic-elbo", optimizer="natural")
    scored = {"sequences": DOCUMENTS, "fast_steps": FAST_STEPS}
    return evaluate_protocols(fitted, fitted.dataset(), twin=ltm.Run.load(twin), **scored).to_dict()


def run(*arguments: str) -> dict[str, Any]:
    """Shows a command, runs it with its progress on the terminal, and gives the object that it prints."""
    console.print(f"\n[bold green]$[/] [bold]pyro-ltm {shlex.join(arguments)}[/]", highlight=False)
    command = [sys.executable, *sys.orig_argv[1 : -len(sys.argv)], "-m", "pyro_ltm_cli.main", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


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
