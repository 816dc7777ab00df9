"""Trains a small latent-thought language model on text that ships with Python, and shows what came of it.

    make demo                      (or: python examples/demo.py [--out FOLDER] [--steps N])

Runs the commands that a user would type, each as its own process, and sums up what they measured. Nothing is
downloaded.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pyro_ltm import UserError
from pyro_ltm.runs.metrics import read_metrics

console = Console()
SENTENCE = "If the file does not exist, the function returns None and the list is not changed."


def run(*arguments: str) -> dict[str, Any]:
    """Shows a command, runs it with its progress on the terminal, and gives the object that it prints."""
    console.print(f"\n[bold green]$[/] [bold]pyro-ltm {shlex.join(arguments)}[/]", highlight=False)
    command = [sys.executable, *sys.orig_argv[1 : -len(sys.argv)], "-m", "pyro_ltm_cli.main", *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """The demo from text to plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="written anew each time")
    parser.add_argument("--steps", type=int, help="slow steps; default: those of the preset")
    options = parser.parse_args()
    started = time.perf_counter()
    out: Path = options.out
    if out.exists():
        if not (out / "demo.json").exists() and any(out.iterdir()):
            raise UserError(f"{out}: is not a demo's folder; give another one with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / "demo.json").write_text("{}\n")
    data, ltm, twin = (str(out / name) for name in ("data", "ltm", "twin"))
    steps = ["--steps", str(options.steps)] if options.steps else []

    console.rule("1. Text to tokens")
    run("prepare", "python-docs", "--out", data, "--vocab-size", "1024", "--sequence-length", "128")
    console.rule("2. Train: a latent-thought model, and the same decoder without thoughts")
    run("train", "--data", data, "--out", ltm, "--preset", "nano", *steps)
    run("train", "--data", data, "--out", twin, "--preset", "nano", "--set", "model.thoughts=0", *steps)
    console.rule("3. Evaluate both on text they have not seen")
    figures = run("evaluate", ltm, "--twin", twin, "--sequences", "128")
    console.rule("4. Generate from the prior and from a prompt")
    prior = run("generate", ltm, "--num", "1", "--max-new-tokens", "60", "--temperature", "0.7")
    prompted = run(
        "generate", ltm, "--prompt", "The function returns", "--max-new-tokens", "40", "--temperature", "0.7"
    )
    console.rule("5. Reconstruct a sentence from its own thoughts")
    rebuilt = run("reconstruct", ltm, "--text", SENTENCE)

    rows = read_metrics(Path(ltm) / "metrics.jsonl")
    summary = {
        "untrained": next(row["nats_per_token"] for row in rows if row["kind"] == "validation"),
        "unigram": next(row["unigram_nats_per_token"] for row in rows if row["kind"] == "start"),
        "bound": figures["bound"],
        "twin": figures["twin"],
        "seconds": round(time.perf_counter() - started, 1),
    }
    (out / "demo.json").write_text(json.dumps(summary, indent=2) + "\n")
    report(summary, prior, prompted, rebuilt, out)


def report(
    summary: dict[str, Any], prior: dict[str, Any], prompted: dict[str, Any], rebuilt: dict[str, Any], out: Path
) -> None:
    """The figures that a newcomer should take away."""
    bound, twin = summary["bound"], summary["twin"]
    console.rule("What came of it")
    console.print("From the prior:", style="bold")
    console.print(prior["texts"][0]["text"], markup=False, highlight=False)
    console.print("\nFrom a prompt:", style="bold")
    console.print(f"{prompted['prompt']}{prompted['texts'][0]['text']}", markup=False, highlight=False)
    console.print("\nReconstructed from thoughts alone:", style="bold")
    console.print(rebuilt["text"], markup=False, highlight=False)
    console.print()
    table = Table(title="Nats a token on held-out text (lower is better)", title_justify="left")
    table.add_column("model")
    table.add_column("nats a token", justify="right")
    table.add_row("untrained", f"{summary['untrained']:.3f}")
    table.add_row("unigram: how common each token is", f"{summary['unigram']:.3f}")
    stderr = bound["nats_per_token_stderr"]
    table.add_row("latent-thought model, upper bound", f"[bold]{bound['nats_per_token']:.3f}[/] ± {stderr:.3f}")
    table.add_row("twin without thoughts, exact", f"{twin['nats_per_token']:.3f} ± {twin['nats_per_token_stderr']:.3f}")
    console.print(table)
    console.print(
        f"Its thoughts carry {bound['kl_nats_per_sequence']:.1f} nats a sequence. With another sequence's thoughts "
        f"the distortion rises from {bound['distortion_nats_per_token']:.3f} to {bound['distortion_shuffled']:.3f} "
        "nats a token.",
        highlight=False,
    )
    console.print(f"\nDone in {summary['seconds']:.0f} s. Written:", style="bold", highlight=False)
    for path in ("ltm/plots/training.png", "ltm/plots/bounds.png", "demo.json", "ltm", "twin", "data"):
        console.print(f"  {out / path}", highlight=False)
    console.print("\nNext:", style="bold")
    console.print(f"  .venv/bin/pyro-ltm generate {out}/ltm --num 3", highlight=False)
    console.print("  .venv/bin/pyro-ltm train --data YOUR.txt --out runs/mine --preset nano", highlight=False)
    console.print("  .venv/bin/pyro-ltm --help", highlight=False)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"Error: {error}")
