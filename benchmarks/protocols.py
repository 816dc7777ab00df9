"""A latent-thought model and its twin under every protocol: on worlds, where the floor is known, and on real text.

    python -m benchmarks.protocols --out runs/protocols [--only worlds] [--seeds 0,1] [--protocol all]
        [--shared ../shared]
    python -m benchmarks.protocols --table runs/protocols/protocols.json

By the commands that a user would type, each printed: prepares, trains both on the same tokens, evaluates. Leaves
OUT/protocols.json, in which each protocol stays beside those measured before, and prints the tables. A run that is
there already goes on where it was. The second form publishes such a file: its corpora take their places in the newest
benchmarks/protocols-DATE.json, their tables in README, docs/ and benchmarks/notes/, and the picture is drawn anew.
Real text needs `--shared`, a folder with `data/tinyshakespeare/input.txt` and `data/wikitext-2/wiki.*.tokens`;
benchmarks/notes/texts.md says where they come from.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks import pages, pictures, results
from benchmarks.real_text import machine, run
from pyro_ltm.runs.evaluation_file import merged

LONG = [
    *("--preset", "nano", "--set", "model.window=8", "--set", "fast.steps=16", "--set", "slow.batch_size=4"),
    *("--set", "compile=true"),
]
WEAK = ["--set", "optimizer.eps=0.01", "--set", "slow.eval_every=0"]
"""A fast loop whose Adam follows weak gradients, too."""
STARTED = [
    *("--set", "guide.name=semi-amortized", "--set", "optimizer.lr=0.2", "--set", "optimizer.eps=0.1"),
    *("--set", "slow.eval_every=500", "--set", "slow.eval_sequences=32"),
]
"""An encoder that starts the fast loop."""
DEFAULT = ["--preset", "nano-long", "--set", "slow.eval_every=0"]
"""The default of `train` for long texts: a tenth of the slow steps without thoughts, then with them."""
HALF = [*DEFAULT, "--set", "slow.decoder_warmup=0.5"]
"""Half of them without thoughts."""
THOUGHTS_FIRST = [*DEFAULT, "--set", "slow.decoder_warmup=0"]
"""Thoughts from the first slow step on."""
NATURAL = [
    *(*THOUGHTS_FIRST, "--set", "slow.lr_final=0.1", "--set", "optimizer.name=natural"),
    *("--set", "optimizer.lr=0.7", "--set", "fast.steps=16", "--set", "fast.subsample=1", "--set", "compile=true"),
]
"""Fast steps along natural gradients, each on the whole text."""
TIGHT = ["--fast-steps", "64", "--set", "optimizer.lr=0.1", "--set", "optimizer.eps=1"]
"""A longer, calmer fast loop than in training."""
CALM = ["--fast-steps", "64", "--set", "optimizer.name=natural", "--set", "optimizer.lr=0.3"]
"""As many steps along natural gradients, which come nearer to the posterior of a long text than Adam's."""
RECIPE = ["--preset", "nano", "--set", "model.window=8", "--set", "fast.steps=16", "--set", "slow.eval_every=500"]
JUDGED = ["--seed", "1", "--batch-size", "50"]
READ_BY = {"particles": ("bound", "prefix"), "ais": ("bound",), "prefix": ("prefix",)}
"""Parts of a plan that only some protocols read."""


def _prefixes(stride: int, *given: int) -> list[str]:
    return ["--stride", str(stride), *(word for prefix in given for word in ("--prefix", str(prefix)))]


SHORT = {"particles": ["--particles", "32"], "prefix": _prefixes(16, 32, 64, 96)}
WIKITEXT = ["{data}/wikitext-2/wiki.train.shuffled.tokens", "--validation", "{data}/wikitext-2/wiki.valid.tokens"]
LONG_512 = {"particles": ["--particles", "64"], "prefix": _prefixes(128, 128, 256, 384)}
WORLDS_15 = {**SHORT, "prepare": ["worlds:documents=20000", "--sequence-length", "128"]}
WORLDS_LENGTH = ["--set", "model.max_length=1920"]
WORLDS_240 = {
    "prepare": ["worlds:length=240,documents=6000", "--sequence-length", "1920"],
    "evaluate": ["--data", "worlds:length=240,documents=50", *CALM],
    "particles": ["--particles", "512"],
    "prefix": _prefixes(384, 480, 960, 1440),
}
LONG_2048 = {"particles": ["--particles", "64"], "prefix": _prefixes(512, 512, 1024, 1536)}
WIKITEXT_2048 = {
    "prepare": [*WIKITEXT, "--vocab-size", "1024", "--sequence-length", "2048"],
    "evaluate": ["--data", "{data}/wikitext-2/wiki.test.tokens", "--sequences", "100", *CALM],
    **LONG_2048,
}
TINYSHAKESPEARE_2048 = {
    "prepare": ["{data}/tinyshakespeare/input.txt", "--vocab-size", "1024", "--sequence-length", "2048"],
    "evaluate": ["--sequences", "100", *CALM],
    **LONG_2048,
}

CORPORA: dict[str, dict[str, list[str]]] = {
    "worlds": {
        **WORLDS_15,
        "train": ["--preset", "nano-worlds"],
        "evaluate": ["--data", "worlds:documents=100", *CALM],
        "particles": ["--particles", "512"],
        "ais": ["--ais", "16"],
    },
    "worlds-16-steps": {
        **WORLDS_15,
        "train": [*RECIPE, "--steps", "1000"],
        "evaluate": ["--data", "worlds:documents=100", "--fast-steps", "32"],
        "particles": ["--particles", "64"],
        "ais": ["--ais", "8"],
    },
    "worlds-long": {
        "prepare": ["worlds:length=80,documents=10000", "--sequence-length", "640"],
        "train": [*LONG, *WEAK, "--set", "model.max_length=640", "--steps", "1500"],
        "evaluate": ["--data", "worlds:length=80,documents=50", *TIGHT],
        "particles": ["--particles", "128"],
        "prefix": _prefixes(128, 160, 320, 480),
    },
    "worlds-longer": {**WORLDS_240, "train": [*DEFAULT, *WORLDS_LENGTH, "--steps", "5000"]},
    "worlds-longer-half": {**WORLDS_240, "train": [*HALF, *WORLDS_LENGTH, "--steps", "5000"]},
    "worlds-longer-thoughts-first": {**WORLDS_240, "train": [*THOUGHTS_FIRST, *WORLDS_LENGTH, "--steps", "5000"]},
    "worlds-longer-natural": {
        **WORLDS_240,
        "ais": ["--ais", "16"],
        "train": [*NATURAL, *WORLDS_LENGTH, "--steps", "3000"],
    },
    "wikitext-2-longer": {**WIKITEXT_2048, "train": [*DEFAULT, "--steps", "2000"]},
    "wikitext-2-longer-half": {**WIKITEXT_2048, "train": [*HALF, "--steps", "2000"]},
    "wikitext-2-longer-natural": {**WIKITEXT_2048, "train": [*NATURAL, "--steps", "2000"]},
    "tinyshakespeare-longer": {**TINYSHAKESPEARE_2048, "train": [*DEFAULT, "--steps", "2000"]},
    "tinyshakespeare-longer-half": {**TINYSHAKESPEARE_2048, "train": [*HALF, "--steps", "2000"]},
    "tinyshakespeare-longer-natural": {**TINYSHAKESPEARE_2048, "train": [*NATURAL, "--steps", "2000"]},
    "tinyshakespeare-long": {
        "prepare": ["{data}/tinyshakespeare/input.txt", "--vocab-size", "1024", "--sequence-length", "512"],
        "train": [*LONG, *WEAK, "--set", "model.max_length=512", "--steps", "1000"],
        "evaluate": ["--sequences", "50", *TIGHT],
        **LONG_512,
    },
    "wikitext-2-long": {
        "prepare": [*WIKITEXT, "--vocab-size", "1024", "--sequence-length", "512"],
        "train": [*LONG, *STARTED, "--set", "model.max_length=512", "--steps", "1500"],
        "evaluate": ["--data", "{data}/wikitext-2/wiki.test.tokens", "--sequences", "50", *TIGHT],
        **LONG_512,
    },
    "tinyshakespeare": {
        "prepare": ["{data}/tinyshakespeare/input.txt", "--vocab-size", "1024", "--sequence-length", "128"],
        "train": [*RECIPE, "--steps", "1000"],
        "evaluate": ["--sequences", "100", "--fast-steps", "32"],
        **SHORT,
    },
    "wikitext-2": {
        "prepare": [*WIKITEXT, "--vocab-size", "1024", "--sequence-length", "128"],
        "train": [*RECIPE, "--steps", "1000"],
        "evaluate": ["--data", "{data}/wikitext-2/wiki.test.tokens", "--sequences", "100", "--fast-steps", "32"],
        **SHORT,
    },
}


def judging(plan: dict[str, list[str]], protocol: str) -> list[str]:
    """The options of `evaluate` that this protocol reads."""
    read = [part for part, its in READ_BY.items() if protocol in (*its, "all")]
    return [*(word for part in ("evaluate", *read) for word in plan.get(part, [])), "--protocol", protocol]


def measure(
    name: str,
    data: str,
    out: Path,
    seed: int,
    protocol: str,
    before: dict[str, Any] | None = None,
    particles: int | None = None,
) -> dict[str, Any]:
    """All figures of one corpus with one seed, or those of one protocol, merged with what was found `before`.

    `particles`: draws, in place of as many as the corpus has.
    """
    plan = {key: [part.format(data=data) for part in parts] for key, parts in CORPORA[name].items()}
    if particles:
        plan["particles"] = ["--particles", str(particles)]
    tokens = str(out / name / "tokens")
    if not Path(tokens).exists():
        run("prepare", *plan["prepare"], "--out", tokens)
    rows = {row["seed"]: row for row in (before or {"rows": []})["rows"]}
    ltm, twin = (str(out / name / f"{kind}-{seed}") for kind in ("ltm", "twin"))
    for folder, extra in ((twin, ["--set", "model.thoughts=0"]), (ltm, [])):
        train = ("train", "--data", tokens, "--out", folder, *plan["train"], *extra)
        run(*train, "--seed", str(seed), "--resume")
    found = run("evaluate", ltm, "--twin", twin, *judging(plan, protocol), *JUDGED)
    rows[seed] = {"seed": seed, **(merged(rows[seed], found) if seed in rows else found)}
    ordered = [rows[one] for one in sorted(rows)]
    return {"machine": machine(), "threads": os.environ.get("OMP_NUM_THREADS"), "rows": ordered}


def main() -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path, help="publish such a file, and measure nothing")
    parser.add_argument("--only", choices=list(CORPORA))
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--protocol", choices=("bound", "prefix", "reference", "all"), default="all")
    parser.add_argument("--particles", type=int, help="draws, in place of as many as the corpus has")
    options = parser.parse_args()
    if (options.out is None) == (options.table is None):
        parser.error("give either --out or --table")
    if options.table:
        found = pages.publish("protocols", options.table, results.tables, {options.shared: "../shared"})
        pictures.draw(found)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "protocols.json"
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in [options.only] if options.only else CORPORA:
        for seed in map(int, options.seeds.split(",")):
            data, before = str(options.shared / "data"), known.get(name)
            known[name] = measure(name, data, options.out, seed, options.protocol, before, options.particles)
            # After each seed: whoever stops here has hours of work in this file.
            file.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
        print(results.markdown(known[name]))


if __name__ == "__main__":
    main()
